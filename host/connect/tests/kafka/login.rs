//! Credentials and TLS: what lets in, what does not, and what is said then.

use crate::world::{Admin, cluster, produce_texts, read, shared};
use std::path::PathBuf;
use tidemill_connect::ConnectError;
use tidemill_connect::kafka::{Cluster, Login, Mechanism, Tls};
use tidemill_connect::sink::Sink as _;
use tidemill_connect::sink::kafka::{KafkaSink, KafkaTarget};
use tidemill_connect::source::kafka::{KafkaSource, KafkaSpec};
use tidemill_engine::outbox::Stages;
use tidemill_services::kafka::{PASSWORD, USER};

fn by(brokers: String, mechanism: Mechanism, password: &str) -> Cluster {
    let login = Login { mechanism, user: USER.into(), password: password.into() };
    Cluster { login: Some(login), ..cluster(brokers) }
}

fn source(cluster: Cluster, topic: &str) -> Result<KafkaSource, ConnectError> {
    KafkaSource::connect(KafkaSpec { cluster, topics: vec![topic.into()], group: "g".into() })
}

fn sink(cluster: Cluster, topic: &str) -> KafkaSink {
    KafkaSink::sessions(KafkaTarget::new(cluster, topic), "visits".into(), "out".into(), Stages::ALL)
}

#[test]
fn each_mechanism_lets_in_with_the_password_alone() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("login"), 1, &[]);
    produce_texts(broker, &topic, 0, &["a"]);
    for mechanism in Mechanism::ALL {
        let name = mechanism.name();
        let source = self::source(by(broker.login(), mechanism, PASSWORD), &topic).unwrap();
        let p = source.partitions().unwrap().remove(0);
        let mut partition = source.open(&p, 0).unwrap();
        assert_eq!(read(&source, &mut partition, 1), [(0, "a".to_owned())], "{name}");
        sink(by(broker.login(), mechanism, PASSWORD), &topic).open(1, None).unwrap();

        let refused = self::source(by(broker.login(), mechanism, "guessed"), &topic).err().unwrap();
        assert!(matches!(refused, ConnectError::Config(_)), "{name}: {refused}");
        let told = refused.to_string();
        assert!(
            told.contains(&broker.login()) && told.to_lowercase().contains("authentication"),
            "{name}: {told}"
        );
        assert!(!told.contains("guessed"), "{told}");
        let refused = sink(by(broker.login(), mechanism, "guessed"), &topic).open(1, None).unwrap_err();
        assert!(matches!(refused, ConnectError::Config(_)), "{name}: {refused}");
    }
}

#[test]
fn a_cluster_that_wants_a_login_is_not_waited_for_without_one() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("anonymous"), 1, &[]);
    let e = source(cluster(broker.login()), &topic).err().unwrap();
    // Brokers close the connection without a word; so it may be a broker that restarts.
    assert!(matches!(e, ConnectError::Unavailable(_)) && e.to_string().contains(&broker.login()), "{e}");
    assert!(e.to_string().contains("log-in?"), "{e}");
}

#[test]
fn tls_trusts_the_authority_that_is_named_and_no_other() {
    let Some(broker) = shared() else { return };
    let topic = Admin::of(broker).topic(broker.name("tls"), 1, &[]);
    produce_texts(broker, &topic, 0, &["a"]);
    let with = |authorities: Option<PathBuf>| Cluster {
        tls: Some(Tls { authorities, ..Tls::default() }),
        ..cluster(broker.tls())
    };
    let trusting = source(with(Some(broker.certificate())), &topic).unwrap();
    let p = trusting.partitions().unwrap().remove(0);
    let mut partition = trusting.open(&p, 0).unwrap();
    assert_eq!(read(&trusting, &mut partition, 1), [(0, "a".to_owned())]);

    let unknown = source(with(None), &topic).err().unwrap();
    assert!(matches!(unknown, ConnectError::Config(_)), "{unknown}");
    assert!(unknown.to_string().contains("certificate"), "{unknown}");
    let missing = source(with(Some("/nowhere/ca.pem".into())), &topic).err().unwrap();
    assert!(
        matches!(missing, ConnectError::Config(_)) && missing.to_string().contains("ca.pem"),
        "{missing}"
    );
}
