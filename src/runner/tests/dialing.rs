//! The way to the gateway: answers other than the upgrade, proxies, certificates.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::super::config::Config;
use super::super::dial::{DialError, Dialer};
use super::super::supervisor::Exit;
use super::support::*;

#[tokio::test]
async fn an_unknown_token_ends_the_runner() {
    let gateway = Gateway::start().await;
    let runner = Runner::start(config(&gateway.url(), &[]), Arc::new(Script::default()));
    let (stream, _) = gateway.listener().accept().await.unwrap();
    let body = r#"{"error":"unknown token","code":"invalid_key","requestId":"1"}"#;
    let head =
        "HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\ncontent-length: 62\r\n";
    assert_eq!(body.len(), 62);
    answer_http(stream, &format!("{head}\r\n{body}")).await;
    assert!(matches!(runner.exit().await, Exit::Refused(why) if why.contains("unknown token")));
}

#[tokio::test]
async fn a_gateway_that_is_not_ready_is_dialled_again() {
    let gateway = Gateway::start().await;
    let runner = Runner::start(config(&gateway.url(), &[]), Arc::new(Script::default()));
    let (stream, _) = gateway.listener().accept().await.unwrap();
    answer_http(
        stream,
        "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n",
    )
    .await;
    eventually("the reason shows", || {
        runner
            .worker
            .health()
            .last_error
            .is_some_and(|e| e.contains("503"))
    })
    .await;
    gateway.session().await;
}

/// A proxy that notes what it was asked and passes everything on to `target`.
async fn proxy(
    target: u16,
    answer: &'static str,
) -> (u16, Arc<AtomicUsize>, Arc<std::sync::Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (count, asked) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(std::sync::Mutex::new(String::new())),
    );
    let (counting, noting) = (Arc::clone(&count), Arc::clone(&asked));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            counting.fetch_add(1, Ordering::SeqCst);
            *noting.lock().unwrap() = read_head(&mut client).await;
            client.write_all(answer.as_bytes()).await.unwrap();
            if answer.contains("200") {
                let gateway = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                tokio::spawn(splice(client, gateway));
            }
        }
    });
    (port, count, asked)
}

/// A gateway on another machine: this one is never reached through a proxy.
fn elsewhere(variables: &[(&str, &str)]) -> Config {
    let mut config = config("ws://localhost", variables);
    config.gateway = "ws://gateway.invalid:80/connect".parse().unwrap();
    config
}

#[tokio::test]
async fn connections_go_through_the_http_proxy_with_its_password() {
    let gateway = Gateway::start().await;
    let (port, count, asked) = proxy(gateway.port(), "HTTP/1.1 200 OK\r\n\r\n").await;
    let proxy = format!("http://user:secret@127.0.0.1:{port}");
    // The name resolves nowhere here: only the proxy knows it.
    let config = elsewhere(&[("HTTP_PROXY", &proxy)]);
    let _runner = Runner::start(config, Arc::new(Script::default()));
    gateway.session().await;
    assert_eq!(count.load(Ordering::SeqCst), 1);
    let asked = asked.lock().unwrap().clone();
    assert!(
        asked.starts_with("CONNECT gateway.invalid:80 HTTP/1.1"),
        "{asked}"
    );
    assert!(
        asked.contains("Proxy-Authorization: Basic dXNlcjpzZWNyZXQ="),
        "{asked}"
    );
    assert!(
        !asked.contains("rk_acme"),
        "the token is for the gateway only"
    );
}

#[tokio::test]
async fn this_machine_is_reached_without_the_proxy() {
    let gateway = Gateway::start().await;
    let (port, count, _) = proxy(gateway.port(), "HTTP/1.1 200 OK\r\n\r\n").await;
    let proxy = format!("http://127.0.0.1:{port}");
    let config = config(
        &gateway.url(),
        &[("ALL_PROXY", &proxy), ("NO_PROXY", "example.com")],
    );
    let _runner = Runner::start(config, Arc::new(Script::default()));
    gateway.session().await;
    assert_eq!(count.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named() {
    let gateway = Gateway::start().await;
    let (port, _, _) = proxy(
        gateway.port(),
        "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
    )
    .await;
    let proxy = format!("http://127.0.0.1:{port}");
    let dialer = Dialer::new(&elsewhere(&[("ALL_PROXY", &proxy)])).unwrap();
    let message = dialer.dial().await.map(|_| ()).unwrap_err().to_string();
    assert!(
        message.contains(&format!("through the proxy 127.0.0.1:{port}")),
        "{message}"
    );
    assert!(
        message.contains("proxy authorization required"),
        "{message}"
    );
}

#[tokio::test]
async fn connections_go_through_a_socks_proxy() {
    let gateway = Gateway::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!(
        "socks5h://127.0.0.1:{}",
        listener.local_addr().unwrap().port()
    );
    let target = gateway.port();
    let socks = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut greeting = [0; 2];
        client.read_exact(&mut greeting).await.unwrap();
        client
            .read_exact(&mut vec![0; greeting[1].into()])
            .await
            .unwrap();
        client.write_all(&[5, 0]).await.unwrap();
        let mut request = [0; 5];
        client.read_exact(&mut request).await.unwrap();
        assert_eq!(request[3], 3, "the proxy resolves the name");
        let mut name = vec![0; usize::from(request[4]) + 2];
        client.read_exact(&mut name).await.unwrap();
        client
            .write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        splice(
            client,
            TcpStream::connect(("127.0.0.1", target)).await.unwrap(),
        )
        .await;
    });
    let _runner = Runner::start(
        elsewhere(&[("ALL_PROXY", &proxy)]),
        Arc::new(Script::default()),
    );
    gateway.session().await;
    socks.abort();
}

/// An authority of our own and a server certificate by it.
struct Pki {
    ca: CertificateParams,
    ca_key: KeyPair,
}

impl Pki {
    fn new() -> Self {
        let mut ca = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            ca,
            ca_key: KeyPair::generate().unwrap(),
        }
    }

    /// The authority's certificate in a file, and a gateway that shows what `server` makes of it.
    fn serve(
        self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (tempfile::NamedTempFile, TlsAcceptor) {
        super::super::tls::install_crypto();
        let ca = self.ca.self_signed(&self.ca_key).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ca.pem()).unwrap();
        let issuer = Issuer::new(self.ca, self.ca_key);
        let mut server = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        change(&mut server);
        let key = KeyPair::generate().unwrap();
        let certificate = server.signed_by(&key, &issuer).unwrap();
        (file, acceptor(certificate.der().clone(), &key))
    }
}

fn acceptor(certificate: rustls::pki_types::CertificateDer<'static>, key: &KeyPair) -> TlsAcceptor {
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    TlsAcceptor::from(Arc::new(
        config
            .with_single_cert(vec![certificate], key.into())
            .unwrap(),
    ))
}

fn tls_config(
    gateway: &Gateway,
    ca_file: Option<&std::path::Path>,
) -> super::super::config::Config {
    let mut config = config(&format!("wss://localhost:{}", gateway.port()), &[]);
    config.ca_file = ca_file.map(Into::into);
    config
}

/// What dialling a gateway with that certificate says.
async fn refusal(acceptor: TlsAcceptor, ca_file: Option<&std::path::Path>) -> String {
    let gateway = Gateway::start().await;
    let dialer = Dialer::new(&tls_config(&gateway, ca_file)).unwrap();
    let accept = async {
        let (stream, _) = gateway.listener().accept().await.unwrap();
        // It fails on this side too; only the runner's words matter.
        let _ = acceptor.accept(stream).await;
    };
    let (dialled, ()) = tokio::join!(dialer.dial(), accept);
    match dialled.map(|_| ()) {
        Err(DialError::Retry { message, .. }) => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_private_authority_is_trusted_through_the_ca_file() {
    let (file, acceptor) = Pki::new().serve(|_| {});
    let gateway = Gateway::start().await;
    let _runner = Runner::start(
        tls_config(&gateway, Some(file.path())),
        Arc::new(Script::default()),
    );
    let (stream, _) = gateway.listener().accept().await.unwrap();
    let mut session = GatewaySession::over(Box::new(acceptor.accept(stream).await.unwrap())).await;
    let source = session.source.clone();
    session
        .send(json!({"type": "hello-ack", "serverVersion": 2, "assignedSources": [source]}))
        .await;
    let (id, job) = session.job("rows 1 1000");
    session.send(job).await;
    session.accepted(id).await;
    session.rows().await;
    session.done().await;
}

#[tokio::test]
async fn certificates_that_do_not_please_say_what_to_do() {
    let (_, acceptor) = Pki::new().serve(|_| {});
    let unknown = refusal(acceptor, None).await;
    assert!(unknown.contains("SEMILAYER_CA_FILE"), "{unknown}");
    let (file, acceptor) = Pki::new().serve(|server| server.subject_alt_names.clear());
    let name = refusal(acceptor, Some(file.path())).await;
    assert!(name.contains("another name"), "{name}");
    let (file, acceptor) = Pki::new().serve(|server| {
        server.not_before = rcgen::date_time_ymd(2020, 1, 1);
        server.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    let expired = refusal(acceptor, Some(file.path())).await;
    assert!(expired.contains("it has expired"), "{expired}");
}

#[tokio::test]
async fn an_authority_used_as_a_server_is_explained() {
    super::super::tls::install_crypto();
    let Pki { ca, ca_key } = Pki::new();
    let certificate = ca.self_signed(&ca_key).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), certificate.pem()).unwrap();
    let message = refusal(
        acceptor(certificate.der().clone(), &ca_key),
        Some(file.path()),
    )
    .await;
    assert!(message.contains("basicConstraints=CA:FALSE"), "{message}");
}

#[tokio::test]
async fn a_port_without_tls_is_explained() {
    let gateway = Gateway::start().await;
    let dialer = Dialer::new(&tls_config(&gateway, None)).unwrap();
    let accept = async {
        let (mut stream, _) = gateway.listener().accept().await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let (dialled, ()) = tokio::join!(dialer.dial(), accept);
    let message = dialled.map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("does not speak TLS"), "{message}");
}

#[test]
fn a_ca_file_that_is_none_is_refused_at_the_start() {
    super::super::tls::install_crypto();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "not a certificate").unwrap();
    for path in [file.path(), std::path::Path::new("/nowhere/ca.pem")] {
        let mut config = config("wss://localhost", &[]);
        config.ca_file = Some(path.into());
        let error = Dialer::new(&config).map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with("SEMILAYER_CA_FILE: "), "{error}");
    }
}
