//! The words for TLS, on servers with certificates of an authority of their own.

mod mysql;
mod postgres;

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use super::support::{config, execution, parse, query, run};
use crate::bridge::{BridgeError, BridgeOptions, Bridges, Source};
use crate::ids::SourceId;

/// Makes a certificate that has no extensions, and so is of version 1, for the key of the server.
const VERSION_1: &str = r#"
cd "$1" && openssl req -new -key server.key -subj /CN=old -out old.csr &&
openssl x509 -req -in old.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out server.pem 2>/dev/null &&
openssl x509 -in server.pem -noout -text | grep -q 'Version: 1 '
"#;

fn to_version_1(dir: &Path) {
    let mut make = Command::new("bash");
    make.args(["-c", VERSION_1, "old"]).arg(dir);
    assert!(make.status().unwrap().success());
}

/// An authority, a certificate of the server for `localhost`, one of a client, and a stranger's authority.
fn certificates(dir: &Path) {
    let write = |name: &str, text: String| std::fs::write(dir.join(name), text).unwrap();
    let authority = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        (params, key, pem)
    };
    let (params, key, pem) = authority("ours");
    write("ca.pem", pem);
    write("ca.key", key.serialize_pem());
    write("stranger.pem", authority("theirs").2);
    let issuer = Issuer::from_params(&params, &key);
    let signed = |file: &str, common: &str, names: Vec<String>| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        write(&format!("{file}.pem"), certificate.pem());
        write(&format!("{file}.key"), key.serialize_pem());
    };
    signed("server", "server", vec!["localhost".to_owned()]);
    signed("client", "certified", Vec::new());
}

/// A server with certificates, whose view `me` has one row.
struct Server {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
    bridge: &'static str,
    /// What is always the same of its settings.
    settings: Value,
    /// Whether the row of `me` says that there is TLS.
    is_tls: fn(&Value) -> bool,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts one by a script, which has the folder and the port, says `ready`, and ends with its standard input.
    fn start(
        script: &str,
        bridge: &'static str,
        settings: Value,
        is_tls: fn(&Value) -> bool,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        certificates(dir.path());
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut child = Command::new("bash")
            .args(["-c", script, "server"])
            .arg(dir.path())
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self {
            child,
            port,
            dir,
            bridge,
            settings,
            is_tls,
        }
    }

    fn pem(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// Whether there was TLS, for these settings beside those that are always the same.
    async fn ask(&self, options: BridgeOptions, settings: Value) -> Result<bool, BridgeError> {
        let mut all = config(json!({"host": "127.0.0.1", "port": self.port}));
        all.extend(config(self.settings.clone()));
        all.extend(config(settings));
        let source = Source {
            id: SourceId::new(),
            name: "s".into(),
            bridge: self.bridge.into(),
            config: all,
        };
        let bridges = Bridges::new(options);
        let (rows, _) = run(&bridges, &source, &query("me", json!({})), &execution()).await?;
        Ok((self.is_tls)(&parse(&rows)[0]))
    }

    async fn tls(&self, settings: Value) -> bool {
        let asked = self.ask(BridgeOptions::default(), settings.clone()).await;
        asked.unwrap_or_else(|error| panic!("{settings}: {error}"))
    }

    async fn refused(&self, settings: Value) -> String {
        match self.ask(BridgeOptions::default(), settings.clone()).await {
            Err(BridgeError::Unreachable(words)) => words,
            other => panic!("{settings}: {other:?}"),
        }
    }
}
