//! A registry as a program on a port, and what is made of its answers.

use super::*;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

/// Answers requests of these paths, in any number; tells which were asked, and with what authorization.
fn serve(answers: Vec<(&'static str, u16, String)>) -> (String, Receiver<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (asked, asks) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let head = head(&mut stream);
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let login = head.lines().find_map(|l| l.strip_prefix("authorization: ")).unwrap_or_default();
            let known = answers.iter().find(|(p, ..)| *p == path);
            let (status, body) = known.map_or((404, ""), |(_, status, body)| (*status, body.as_str()));
            let length = body.len();
            let text =
                format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
            // Before the answer: who has it may count.
            if asked.send((path, login.to_owned())).is_err() {
                return;
            }
            // Who asked may have gone.
            let _ = stream.write_all(text.as_bytes());
        }
    });
    (url, asks)
}

fn head(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() > 0 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn answer(schema: &str, references: &str) -> String {
    serde_json::json!({ "schema": schema, "references": serde_json::from_str::<Value>(references).unwrap() })
        .to_string()
}

#[test]
fn schemas_come_with_what_they_refer_to() {
    let user = r#"{"type":"record","name":"a.User","fields":[{"name":"home","type":"a.Place"}]}"#;
    let place = r#"{"type":"record","name":"a.Place","fields":[{"name":"x","type":"int"}]}"#;
    let click = r#"{"type":"record","name":"a.Click","fields":[{"name":"u","type":"User"},{"name":"p","type":"Place"}]}"#;
    let to_place = r#"[{"name":"a.Place","subject":"place","version":3}]"#;
    let both = r#"[{"name":"a.User","subject":"us/er","version":1},{"name":"a.Place","subject":"place","version":3}]"#;
    let (url, asks) = serve(vec![
        ("/schemas/ids/7", 200, answer(click, both)),
        ("/subjects/us%2Fer/versions/1", 200, answer(user, to_place)),
        ("/subjects/place/versions/3", 200, answer(place, "[]")),
        ("/schemas/ids/8", 200, answer(click, r#"[{"name":"x","subject":"none","version":1}]"#)),
        (
            "/schemas/ids/9",
            200,
            serde_json::json!({ "schemaType": "PROTOBUF", "schema": "syntax" }).to_string(),
        ),
        ("/schemas/ids/10", 200, answer(click, "[]")),
    ]);
    let mut registry = Registry::new(&format!("{url}/"), Some(("ann", "pass:word"))).unwrap();
    let schema = registry.find(7).unwrap().unwrap();
    assert_eq!(schema.name(), Some("a.Click"));
    let first = asks.recv().unwrap();
    // printf 'ann:pass:word' | base64
    assert_eq!(first, ("/schemas/ids/7".to_owned(), "Basic YW5uOnBhc3M6d29yZA==".to_owned()));
    assert_eq!(asks.recv().unwrap().0, "/subjects/us%2Fer/versions/1");
    assert_eq!(asks.recv().unwrap().0, "/subjects/place/versions/3");
    for (id, part) in
        [(1, "has none"), (8, "version 1 of `none`"), (9, "it is PROTOBUF"), (10, "`a.User` is not defined")]
    {
        let why = registry.find(id).unwrap().expect_err("no schema");
        assert!(why.contains(part), "{why}");
    }
}

#[test]
fn a_registry_that_cannot_say_is_left_alone_for_a_while() {
    let (url, asks) = serve(vec![
        ("/schemas/ids/1", 503, String::new()),
        ("/schemas/ids/2", 401, String::new()),
        ("/schemas/ids/3", 200, "{".to_owned()),
        ("/schemas/ids/4", 200, "{}".to_owned()),
        ("/schemas/ids/5", 200, answer("\"int\"", "[]")),
    ]);
    for (id, part) in
        [(1, "answers 503"), (2, "another name or password"), (3, "is no JSON"), (4, "no `schema`")]
    {
        let mut registry = Registry::new(&url, None).unwrap();
        for asked in [id, 5] {
            let Err(ConnectError::Failed(why)) = registry.find(asked) else { panic!("{asked} was found") };
            assert!(why.contains(part), "{why}");
        }
        assert_eq!(asks.recv().unwrap(), (format!("/schemas/ids/{id}"), String::new()));
        registry.away = registry.away.map(|(since, why)| (since.checked_sub(AWAY).unwrap(), why));
        registry.find(5).unwrap().unwrap();
        assert_eq!(asks.recv().unwrap().0, "/schemas/ids/5");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut registry = Registry::new(&format!("http://{nobody}"), None).unwrap();
    assert!(matches!(registry.find(1), Err(ConnectError::Failed(why)) if why.contains("what schema 1 is")));
    for url in ["https://x", "x", "http://"] {
        assert!(Registry::new(url, None).is_err(), "{url}");
    }
}

#[test]
fn endless_answers_and_references_end() {
    let long = format!("\"{}\"", "x".repeat(ANSWER_BYTES_MAX as usize));
    let round = r#"[{"name":"x","subject":"s","version":1}]"#;
    let (url, asks) = serve(vec![
        ("/schemas/ids/1", 200, long),
        ("/schemas/ids/2", 200, answer("\"int\"", round)),
        ("/subjects/s/versions/1", 200, answer("\"int\"", round)),
    ]);
    let mut registry = Registry::new(&url, None).unwrap();
    registry.find(2).unwrap().unwrap();
    assert!(matches!(registry.find(1), Err(ConnectError::Failed(why)) if why.contains("has more than")));
    // A circle is gone round once.
    let asked = [(); 3].map(|()| asks.recv().unwrap().0);
    assert_eq!(asked, ["/schemas/ids/2", "/subjects/s/versions/1", "/schemas/ids/1"]);
}

#[test]
fn folders_have_a_file_for_each() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("7.avsc"), "\"int\"").unwrap();
    std::fs::write(dir.path().join("8.avsc"), "{").unwrap();
    std::fs::write(dir.path().join("9.avsc"), [0xff]).unwrap();
    std::fs::create_dir(dir.path().join("10.avsc")).unwrap();
    let mut folder = Folder::new(dir.path().to_owned());
    folder.find(7).unwrap().unwrap();
    for (id, part) in [(1, "no file"), (8, "8.avsc: the schema is no JSON"), (9, "is no UTF-8")] {
        let why = folder.find(id).unwrap().expect_err("no schema");
        assert!(why.contains(part), "{why}");
    }
    assert!(matches!(folder.find(10), Err(ConnectError::Failed(_))));
}
