//! Guests that do what they must not: each is refused when it is loaded, or its call ends as the right kind of fault,
//! soon, and without harm to its neighbour. The bugs this is for: a stop that does not stop, and a fault by the wrong name.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test's helpers fail as tests do"
)]

mod guest;

use guest::{Guest, answering, component, folding, frame};
use std::time::{Duration, Instant};
use tidemill_sandbox::{
    Component, ConfigureError, Engine, Fault, FaultKind, Instance, LoadError, Malformed, Progress, TrapKind,
    WrongShape, bounds,
};

const DEADLINE: Duration = Duration::from_millis(20);

fn instance(engine: &Engine, guest: &Guest) -> Instance {
    Component::load(engine, &guest.build(), None).unwrap().configure("{}").unwrap().instance().unwrap()
}

/// Has a guest fail, twice, with a well-behaved one called in between.
fn fails(what: &str, guest: &Guest) -> Fault {
    let engine = Engine::new().unwrap();
    let mut neighbour = instance(&engine, &Guest::default());
    let mut hostile = instance(&engine, guest);
    let frame = frame(100);
    let begin = Instant::now();
    let fault = hostile.fold(&frame, DEADLINE).unwrap_err();
    let took = begin.elapsed();
    neighbour.fold(&frame, DEADLINE).unwrap();
    let again = hostile.fold(&frame, DEADLINE).unwrap_err();
    neighbour.fold(&frame, DEADLINE).unwrap();
    assert_eq!(neighbour.stats().rebuilds, 0);
    println!(
        "{what}: {:.2} ms, made anew in {:.0} µs: {fault}",
        took.as_secs_f64() * 1e3,
        hostile.stats().rebuild_last.as_secs_f64() * 1e6
    );
    assert_eq!(fault.kind.name(), again.kind.name());
    fault
}

fn loads(guest: &Guest) -> Result<Component, LoadError> {
    Component::load(&Engine::new().unwrap(), &guest.build(), None)
}

#[test]
fn loops_are_stopped() {
    let there = Some(Progress { row: 2, input: 3 });
    let fault = fails("endless loop", &folding("(loop $l (br $l)) unreachable"));
    assert_eq!((fault.kind, fault.progress), (FaultKind::Deadline(DEADLINE), there));
    let slow =
        "(loop $l (memory.fill (i32.const 131072) (i32.const 1) (i32.const 3000000)) (br $l)) unreachable";
    let fault = fails("slow loop", &folding(slow));
    assert_eq!((fault.kind, fault.progress), (FaultKind::Deadline(DEADLINE), there));
    let flood =
        "(loop $l (call $log (i32.const 1) (i32.const 131072) (i32.const 2000000)) (br $l)) unreachable";
    assert_eq!(fails("log flood, endless", &folding(flood)).kind, FaultKind::Deadline(DEADLINE));
}

#[test]
fn traps_have_names() {
    let trap = |what: &str, body: &str| {
        let fault = fails(what, &folding(body));
        assert_eq!(fault.progress, Some(Progress { row: 2, input: 3 }), "{what}");
        fault.kind
    };
    assert_eq!(trap("trap", "unreachable"), FaultKind::Panic(None));
    let panic = "(call $log (i32.const 4) (i32.const 1400) (i32.const 9)) unreachable";
    assert_eq!(trap("panic", panic), FaultKind::Panic(Some("a message".into())));
    let bomb = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 64)) (i32.const -1)))) unreachable";
    assert!(
        matches!(trap("memory bomb", bomb), FaultKind::Memory { wanted } if wanted > bounds::MEMORY_BYTES_MAX)
    );
    let deep = "(call $fold (local.get $ptr) (local.get $len))";
    assert_eq!(trap("deep recursion", deep), FaultKind::Trap(TrapKind::StackOverflow));
    assert_eq!(trap("bad access", "(i32.load (i32.const -8))"), FaultKind::Trap(TrapKind::MemoryOrStack));
    assert_eq!(
        trap("division", "(i32.div_u (i32.const 1) (i32.const 0))"),
        FaultKind::Trap(TrapKind::DivisionByZero)
    );
}

#[test]
fn answers_are_checked() {
    let malformed = |what: &str, body: &str| fails(what, &folding(body)).kind;
    let lie = format!("(i64.store (i32.const 4096) (i64.const 8000)) {}", answering(4096, 10));
    let said = Malformed::Length { said: 8000, is: 80 };
    assert_eq!(malformed("lying length", &lie), FaultKind::Malformed(said));
    let version = format!("(i32.store16 (i32.const 4104) (i32.const 9)) {}", answering(4096, 10));
    assert_eq!(malformed("version", &version), FaultKind::Malformed(Malformed::Version(9)));
    let short = answering(4096, 1);
    assert_eq!(malformed("short", &short), FaultKind::Malformed(Malformed::Short { words: 1 }));
    let outside = answering(4096, 0x0fff_0000);
    assert_eq!(malformed("outside memory", &outside), FaultKind::Malformed(Malformed::Place));
    let crooked = answering(4097, 10);
    assert_eq!(malformed("not aligned", &crooked), FaultKind::Malformed(Malformed::Place));
    let huge = format!("(drop (memory.grow (i32.const 1000))) {}", answering(0, 5 << 20));
    assert_eq!(malformed("huge", &huge), FaultKind::Malformed(Malformed::TooLarge));
    let error = "(i32.store (i32.const 2048) (i32.const 1)) (i32.store (i32.const 2052) (i32.const 1400)) (i32.store (i32.const 2056) (i32.const 9)) i32.const 2048";
    assert_eq!(malformed("error", error), FaultKind::Guest("a message".into()));
}

#[test]
fn a_log_is_bounded() {
    let flood = "(loop $l
        (call $log (i32.const 1) (i32.const 131072) (i32.const 5000))
        (local.set $i (i32.add (local.get $i) (i32.const 1)))
        (br_if $l (i32.lt_u (local.get $i) (i32.const 1000)))) i32.const 2048";
    let mut guest = instance(&Engine::new().unwrap(), &folding(flood));
    guest.fold(&frame(8), Duration::from_secs(5)).unwrap();
    let log = guest.take_log();
    assert!(log.lines.iter().all(|l| l.message.len() == bounds::LOG_LINE_BYTES_MAX));
    assert_eq!((log.lines.len(), log.dropped), (64, 936));
}

#[test]
fn what_cannot_start_is_refused() {
    let deadline = |e: LoadError| matches!(e, LoadError::Start(Fault { kind: FaultKind::Deadline(_), .. }));
    let looping = Guest { describe: "(loop $l (br $l)) unreachable", ..Guest::default() };
    assert!(deadline(loads(&looping).unwrap_err()));
    let start = Guest { items: "(func $s (loop $l (br $l))) (start $s)", ..Guest::default() };
    assert!(deadline(loads(&start).unwrap_err()));
    let version = Guest { frame_version: 9, ..Guest::default() };
    assert!(loads(&version).unwrap_err().to_string().contains("version 9 of the frame layout"));
    // The first byte of its version rises with each answer.
    let rising =
        "(i32.store8 (i32.const 1300) (i32.add (i32.load8_u (i32.const 1300)) (i32.const 1))) i32.const 1024";
    let unsteady = Guest { describe: rising, ..Guest::default() };
    assert!(matches!(loads(&unsteady).unwrap_err(), LoadError::Unsteady));
    let name = Guest { name: "A Guest", ..Guest::default() };
    assert!(matches!(loads(&name).unwrap_err(), LoadError::Description(_)));
    let configure = Guest { configure: "unreachable", ..Guest::default() };
    assert!(matches!(loads(&configure).unwrap().configure("{}"), Err(ConfigureError::Fault(_))));
    assert!(matches!(
        loads(&Guest::default()).unwrap().configure("[]"),
        Err(ConfigureError::NotAnObject(None))
    ));
    // The answer of `configure`: a list of one place, which stands right behind it.
    let nowhere = "(i32.store (i32.const 260) (i32.const 272)) (i32.store (i32.const 264) (i32.const 1)) \
                   (i32.store (i32.const 272) (i32.const 7)) i32.const 256";
    let unread = Guest { configure: nowhere, ..Guest::default() };
    let wrong = loads(&unread).unwrap().configure("{}").unwrap_err();
    assert!(
        matches!(wrong, ConfigureError::Unread(_)) && wrong.to_string().contains("its field 7"),
        "{wrong}"
    );
}

#[test]
fn what_has_another_shape_is_refused() {
    let engine = Engine::new().unwrap();
    let refuse = |bytes: &[u8]| {
        let error = Component::load(&engine, bytes, None).unwrap_err();
        println!("{error}");
        error
    };
    for import in [
        "wasi:clocks/wall-clock@0.2.0",
        "wasi:random/random@0.2.0",
        "wasi:filesystem/types@0.2.0",
        "wasi:sockets/tcp@0.2.0",
    ] {
        let text = format!("(component (import \"{import}\" (instance)) (import \"env:x/y\" (instance)))");
        let wrong = refuse(&wat::parse_str(text).unwrap());
        assert!(wrong.to_string().contains("gets no WASI"));
        let LoadError::Shape(WrongShape::Imports(all)) = wrong else { panic!("{wrong}") };
        assert_eq!(all, [import, "env:x/y"]);
    }
    for version in ["0.2.0", "0.4.0"] {
        let text = format!("(component (import \"tidemill:plugin/host@{version}\" (instance)))");
        let wrong = refuse(&wat::parse_str(text).unwrap()).to_string();
        assert!(wrong.contains("another version of the contract"), "{wrong}");
    }
    let core = refuse(&wat::parse_str("(module)").unwrap());
    assert!(matches!(core, LoadError::Shape(WrongShape::CoreModule)));
    assert!(matches!(refuse(b"#!/bin/sh"), LoadError::Shape(WrongShape::NotWasm(_))));
    let other =
        component("(module (func (export \"foo\")))", "package a:b; world w { export foo: func(); }", "w");
    assert!(matches!(refuse(&other), LoadError::Shape(WrongShape::NoWorld { .. })));
    assert!(matches!(refuse(&vec![0; bounds::COMPONENT_BYTES_MAX + 1]), LoadError::TooLarge { .. }));
}
