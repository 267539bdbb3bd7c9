//! A Kafka broker of one's own: one process that is broker and controller, in a folder of its own, with small heaps.
//!
//! It answers on several listeners: `plain`, `behind_proxy` (the same, but tells clients to come back through a port that
//! a test's proxy listens on), `login` (SASL, without TLS) and `tls`. Ports and folder stay the same when it is started again.
//!
//! The broker is the child of a shell that waits for its input to end, so it dies with the test however that ends.

use crate::{Absent, artifacts, or_skip};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Who may log in at the `login` listener, by PLAIN and by SCRAM.
pub const USER: &str = "alice";
/// And with what password.
pub const PASSWORD: &str = "alice-knows-it";

/// How long a broker may take to answer: some seconds on a quiet machine, a machine of tests is not.
const START_MAX: Duration = Duration::from_secs(120);
/// Between two questions whether it answers.
const PACE: Duration = Duration::from_millis(100);
/// Below those that Linux gives to clients (`ip_local_port_range`).
const PORTS: std::ops::Range<u16> = 15_000..32_000;
/// Of the key store that the `tls` listener reads.
const STORE_PASSWORD: &str = "changeit";

/// Ends the broker, whose number is its first word, when the input ends: closed by the test, or by the test's end.
const SHELL: &str = "\"$@\" </dev/null & broker=$!; cat >/dev/null; kill -9 $broker; wait $broker";

/// See the module's documentation.
pub struct Broker {
    folder: tempfile::TempDir,
    libraries: PathBuf,
    ports: Ports,
    child: Mutex<Option<Child>>,
    /// For names that no other test of this broker has.
    names: AtomicUsize,
    proxied: Mutex<Option<TcpListener>>,
}

#[derive(Clone, Copy)]
struct Ports {
    plain: u16,
    controller: u16,
    behind_proxy: u16,
    proxy: u16,
    login: u16,
    tls: u16,
}

/// A broker, or `None` where it cannot be had: see [`or_skip`].
#[must_use]
pub fn broker() -> Option<Broker> {
    or_skip("Kafka", Broker::start())
}

impl Broker {
    /// Fetches what is needed, makes the folder, starts the broker and waits until it answers.
    ///
    /// # Errors
    /// If it cannot be had, or does not start.
    pub fn start() -> Result<Broker, Absent> {
        let java = Command::new("java").arg("-version").stdin(Stdio::null()).output();
        if let Err(e) = java {
            return Err(Absent::Missing(format!("`java` cannot run: {e}")));
        }
        let libraries = artifacts::kafka()?;
        let folder = tempfile::tempdir().map_err(|e| Absent::Broken(e.to_string()))?;
        // Held until it is the proxy's, so that nobody else takes the port that the broker tells its clients.
        let proxied = listen().map_err(|e| Absent::Broken(e.to_string()))?;
        let ports = Ports::free(&proxied).map_err(|e| Absent::Broken(e.to_string()))?;
        let broker = Broker {
            folder,
            libraries,
            ports,
            child: Mutex::default(),
            names: AtomicUsize::new(0),
            proxied: Mutex::new(Some(proxied)),
        };
        broker.make_key_store()?;
        broker.format()?;
        broker.start_again()?;
        Ok(broker)
    }

    /// Starts it again after [`Broker::stop`], on the same ports with what it had.
    ///
    /// # Errors
    /// If it does not answer in time.
    pub fn start_again(&self) -> Result<(), Absent> {
        let log = fs::File::create(self.path("log")).map_err(|e| Absent::Broken(e.to_string()))?;
        let errors = log.try_clone().map_err(|e| Absent::Broken(e.to_string()))?;
        let child = Command::new("sh")
            .args(["-c", SHELL, "sh", "java"])
            .args(["-Xms96m", "-Xmx320m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"])
            .args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"])
            .arg(self.class_path())
            .arg("kafka.Kafka")
            .arg(self.path("server.properties"))
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(|e| Absent::Broken(format!("no shell to start it: {e}")))?;
        *self.child.lock().unwrap() = Some(child);
        let begun = Instant::now();
        while !answers(self.ports.plain) {
            if begun.elapsed() > START_MAX {
                let log = fs::read_to_string(self.path("log")).unwrap_or_default();
                return Err(Absent::Broken(format!("it does not answer. Its last words:\n{}", tail(&log))));
            }
            std::thread::sleep(PACE);
        }
        Ok(())
    }

    /// Kills it, as a power cut would.
    pub fn stop(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            drop(child.stdin.take());
            // The shell kills the broker and ends.
            let _ = child.wait();
            if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
                // Whatever is left of its group; usually nothing is.
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
        }
    }

    /// Without TLS or a log-in.
    #[must_use]
    pub fn plain(&self) -> String {
        format!("127.0.0.1:{}", self.ports.plain)
    }

    /// The same, for clients that come through [`Broker::proxy`].
    #[must_use]
    pub fn behind_proxy(&self) -> String {
        format!("127.0.0.1:{}", self.ports.proxy)
    }

    /// SASL PLAIN, SCRAM-SHA-256 and SCRAM-SHA-512, as [`USER`] with [`PASSWORD`].
    #[must_use]
    pub fn login(&self) -> String {
        format!("127.0.0.1:{}", self.ports.login)
    }

    /// TLS with a certificate that [`Broker::certificate`] signs.
    #[must_use]
    pub fn tls(&self) -> String {
        format!("127.0.0.1:{}", self.ports.tls)
    }

    /// A PEM file: the certificate that the `tls` listener shows, which signs itself.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.path("certificate.pem")
    }

    /// The proxy that clients of [`Broker::behind_proxy`] come through.
    ///
    /// # Panics
    /// If it was made before.
    #[must_use]
    pub fn proxy(&self) -> crate::proxy::Proxy {
        let listener = self.proxied.lock().unwrap().take().expect("one proxy a broker");
        crate::proxy::Proxy::before(listener, &format!("127.0.0.1:{}", self.ports.behind_proxy))
    }

    /// From now on clients of this name may write, and read, so many bytes a second; the broker makes them wait.
    ///
    /// # Errors
    /// If the broker does not take it.
    pub fn throttle(&self, client: &str, bytes_per_second: u64) -> Result<(), Absent> {
        let limits = format!("producer_byte_rate={bytes_per_second},consumer_byte_rate={bytes_per_second}");
        let mut set = Command::new("java");
        set.args(["-Xmx96m", "-XX:TieredStopAtLevel=1", "-cp"]).arg(self.class_path());
        set.args([
            "kafka.admin.ConfigCommand",
            "--bootstrap-server",
            &self.plain(),
            "--alter",
            "--add-config",
            &limits,
        ]);
        done(set.args(["--entity-type", "clients", "--entity-name", client]))
    }

    /// A name that no other test of this broker has.
    #[must_use]
    pub fn name(&self, what: &str) -> String {
        format!("{what}-{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn class_path(&self) -> String {
        format!("{}/*", self.libraries.display())
    }

    fn format(&self) -> Result<(), Absent> {
        let settings = self.path("server.properties");
        fs::write(&settings, self.settings()).map_err(|e| Absent::Broken(e.to_string()))?;
        let mut format = Command::new("java");
        format.args(["-Xmx96m", "-XX:TieredStopAtLevel=1", "-cp"]).arg(self.class_path());
        format
            .args(["kafka.tools.StorageTool", "format", "--cluster-id", &cluster_id(), "--config"])
            .arg(settings);
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            format.arg("--add-scram").arg(format!("{mechanism}=[name={USER},password={PASSWORD}]"));
        }
        done(&mut format)
    }

    fn make_key_store(&self) -> Result<(), Absent> {
        let store = self.path("store.p12");
        let of_store = ["-alias", "broker", "-storepass", STORE_PASSWORD, "-keystore"];
        let mut make = Command::new("keytool");
        make.args(["-genkeypair", "-keyalg", "EC", "-dname", "CN=127.0.0.1", "-ext", "SAN=ip:127.0.0.1"]);
        done(make.args(["-validity", "3650", "-storetype", "PKCS12"]).args(of_store).arg(&store))?;
        let mut export = Command::new("keytool");
        export.args(["-exportcert", "-rfc"]).args(of_store).arg(&store).arg("-file").arg(self.certificate());
        done(&mut export)
    }

    fn settings(&self) -> String {
        let Ports { plain, controller, behind_proxy, proxy, login, tls } = self.ports;
        let jaas = "org.apache.kafka.common.security";
        let data = self.path("data");
        let store = self.path("store.p12");
        format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=PLAIN\n\
             listeners=PLAIN://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},\
             PROXY://127.0.0.1:{behind_proxy},LOGIN://127.0.0.1:{login},TLS://127.0.0.1:{tls}\n\
             advertised.listeners=PLAIN://127.0.0.1:{plain},PROXY://127.0.0.1:{proxy},LOGIN://127.0.0.1:{login},\
             TLS://127.0.0.1:{tls}\n\
             listener.security.protocol.map=PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXY:PLAINTEXT,\
             LOGIN:SASL_PLAINTEXT,TLS:SSL\n\
             listener.name.login.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
             listener.name.login.plain.sasl.jaas.config={jaas}.plain.PlainLoginModule required \
             user_{USER}=\"{PASSWORD}\";\n\
             listener.name.login.scram-sha-256.sasl.jaas.config={jaas}.scram.ScramLoginModule required;\n\
             listener.name.login.scram-sha-512.sasl.jaas.config={jaas}.scram.ScramLoginModule required;\n\
             listener.name.tls.ssl.keystore.type=PKCS12\n\
             listener.name.tls.ssl.keystore.location={store}\n\
             listener.name.tls.ssl.keystore.password={STORE_PASSWORD}\n\
             listener.name.tls.ssl.key.password={STORE_PASSWORD}\n\
             log.dirs={data}\n\
             num.partitions=1\n\
             offsets.topic.num.partitions=1\n\
             offsets.topic.replication.factor=1\n\
             transaction.state.log.num.partitions=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             auto.create.topics.enable=false\n\
             log.cleaner.dedupe.buffer.size=2097152\n\
             num.network.threads=2\n\
             num.io.threads=2\n\
             broker.heartbeat.interval.ms=500\n\
             controlled.shutdown.enable=false\n",
            data = data.display(),
            store = store.display(),
        )
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Ports {
    /// Ports that nobody listens on now, of those that the system gives to no client: one that was free a moment ago would
    /// soon be some connection's.
    fn free(proxied: &TcpListener) -> std::io::Result<Ports> {
        let held: Vec<TcpListener> = (0..5).map(|_| listen()).collect::<Result<_, _>>()?;
        let port = |i: usize| held[i].local_addr().map(|a| a.port());
        Ok(Ports {
            plain: port(0)?,
            controller: port(1)?,
            behind_proxy: port(2)?,
            proxy: proxied.local_addr()?.port(),
            login: port(3)?,
            tls: port(4)?,
        })
    }
}

/// Tries ports from a place on that is another for each process and moment.
pub(crate) fn listen() -> std::io::Result<TcpListener> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let from = since.subsec_nanos() / 100 % u32::from(PORTS.end - PORTS.start);
    let mut tried = Err(std::io::Error::other("no port is free"));
    for i in 0..100 {
        let port = PORTS.start + ((from + i) % u32::from(PORTS.end - PORTS.start)) as u16;
        tried = TcpListener::bind(("127.0.0.1", port));
        if tried.is_ok() {
            break;
        }
    }
    tried
}

/// 16 bytes in the alphabet of URLs, another one for each broker.
fn cluster_id() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{:021}A", since.as_nanos() % 1_000_000_000_000_000_000_000)
}

fn done(command: &mut Command) -> Result<(), Absent> {
    let output = command.stdin(Stdio::null()).output();
    let output =
        output.map_err(|e| Absent::Missing(format!("{:?} cannot run: {e}", command.get_program())))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(Absent::Broken(format!("{:?}: {}", command.get_program(), tail(&String::from_utf8_lossy(&said)))))
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// Whether a broker says which requests it knows (the oldest form of the question, which every broker answers).
fn answers(port: u16) -> bool {
    let asked = || -> std::io::Result<bool> {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        // Length 10; API versions (18) in version 0; correlation 7; no name.
        stream.write_all(&[0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 7, 0xff, 0xff])?;
        let mut head = [0; 10];
        stream.read_exact(&mut head)?;
        Ok(head[4..] == [0, 0, 0, 7, 0, 0])
    };
    asked().unwrap_or(false)
}
