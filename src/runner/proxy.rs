//! Which proxy, if any, a connection goes through, and the tunnel through it: HTTP CONNECT (over TLS too),
//! SOCKS 4 and 5. The rules are those of `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV4, SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::config::{ConfigError, Environment};
use super::tls;
use crate::no_proxy::NoProxy;

/// Bytes in both directions, whatever is underneath.
pub trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Io for T {}

/// An open connection.
pub type BoxedIo = Box<dyn Io>;

type BoxError = Box<dyn StdError + Send + Sync>;

/// The rules by which connections go through proxies.
#[derive(Clone)]
pub struct Proxies {
    rules: Arc<Matcher>,
    excepted: Arc<NoProxy>,
}

impl Proxies {
    /// Reads the rules; upper and lower case names are both understood, as everywhere.
    ///
    /// # Errors
    ///
    /// When a variable holds something that is not the address of a proxy that can be used: connecting
    /// past a proxy that was asked for would be a surprise.
    pub fn from_environment(environment: &Environment) -> Result<Self, ConfigError> {
        let get = |upper: &str| {
            environment
                .get(upper)
                .or_else(|| environment.get(&upper.to_lowercase()))
        };
        for name in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"] {
            if let Some(value) = get(name)
                && Matcher::builder()
                    .all(value.to_owned())
                    .build()
                    .intercept(&Uri::from_static("https://x"))
                    .is_none()
            {
                return Err(ConfigError::new(format!(
                    "{name} is not the address of a proxy: use http://, https://, socks4:// or socks5://host:port"
                )));
            }
        }
        let rule = |name: &str| get(name).unwrap_or_default().to_owned();
        let rules = Matcher::builder()
            .all(rule("ALL_PROXY"))
            .http(rule("HTTP_PROXY"))
            .https(rule("HTTPS_PROXY"))
            .build();
        Ok(Self {
            rules: Arc::new(rules),
            excepted: Arc::new(NoProxy::parse(&rule("NO_PROXY"))),
        })
    }

    /// The proxy for that destination.
    pub fn for_destination(&self, destination: &Uri) -> Option<Intercept> {
        let scheme = destination.scheme_str().unwrap_or_default();
        let host = destination.host().unwrap_or_default();
        match self.excepted.excepts(scheme, host, destination.port_u16()) {
            true => None,
            false => self.rules.intercept(destination),
        }
    }
}

impl fmt::Debug for Proxies {
    /// Leaves addresses out: they may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Proxies")
    }
}

/// Opens a connection to `destination`, through `proxy` if there is one.
///
/// # Errors
///
/// When the destination or the proxy cannot be reached, or the proxy refuses.
pub async fn open(
    destination: &Uri,
    proxy: Option<&Intercept>,
    tls: &TlsConnector,
) -> Result<BoxedIo, BoxError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let Some(proxy) = proxy else {
        return Ok(Box::new(
            call(&mut tcp, destination.clone()).await?.into_inner(),
        ));
    };
    let address = proxy.uri().clone();
    match address.scheme_str() {
        Some("socks5" | "socks5h") => {
            let mut socks = SocksV5::new(address.clone(), tcp)
                .local_dns(address.scheme_str() == Some("socks5"));
            if let Some((user, password)) = proxy.raw_auth() {
                socks = socks.with_auth(user.to_owned(), password.to_owned());
            }
            Ok(Box::new(
                call(&mut socks, destination.clone()).await?.into_inner(),
            ))
        }
        Some("socks4" | "socks4a") => {
            let mut socks = SocksV4::new(address.clone(), tcp)
                .local_dns(address.scheme_str() == Some("socks4"));
            Ok(Box::new(
                call(&mut socks, destination.clone()).await?.into_inner(),
            ))
        }
        _ => {
            let mut tunnel = Tunnel::new(
                address,
                ToProxy {
                    tcp,
                    tls: tls.clone(),
                },
            );
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            Ok(call(&mut tunnel, destination.clone()).await?.into_inner())
        }
    }
}

async fn call<S>(service: &mut S, destination: Uri) -> Result<S::Response, BoxError>
where
    S: Service<Uri>,
    S::Error: Into<BoxError>,
{
    std::future::poll_fn(|cx| service.poll_ready(cx))
        .await
        .map_err(Into::into)?;
    service.call(destination).await.map_err(Into::into)
}

/// Connects to the proxy itself, with TLS when its address says `https`.
struct ToProxy {
    tcp: HttpConnector,
    tls: TlsConnector,
}

impl Service<Uri> for ToProxy {
    type Response = TokioIo<BoxedIo>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, proxy: Uri) -> Self::Future {
        let connecting = self.tcp.call(proxy.clone());
        let tls = self.tls.clone();
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            if proxy.scheme_str() != Some("https") {
                return Ok(TokioIo::new(Box::new(stream) as BoxedIo));
            }
            let host = proxy.host().unwrap_or_default();
            let name = tls::server_name(host).map_err(io::Error::other)?;
            Ok(TokioIo::new(
                Box::new(tls.connect(name, stream).await?) as BoxedIo
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, ConfigError> {
        Proxies::from_environment(
            &variables
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        )
    }

    fn chosen(variables: &[(&str, &str)], destination: &'static str) -> Option<String> {
        let proxies = proxies(variables).unwrap();
        proxies
            .for_destination(&Uri::from_static(destination))
            .map(|i| i.uri().to_string())
    }

    #[test]
    fn the_usual_variables_choose_the_proxy() {
        let https = [("HTTPS_PROXY", "http://proxy:3128")];
        assert_eq!(
            chosen(&https, "https://g.example.com").as_deref(),
            Some("http://proxy:3128/")
        );
        assert_eq!(
            chosen(&https, "http://g.example.com"),
            None,
            "ws:// is not asked of HTTPS_PROXY"
        );
        let lower = [("all_proxy", "socks5h://proxy:1080")];
        assert_eq!(
            chosen(&lower, "https://g.example.com").as_deref(),
            Some("socks5h://proxy:1080/")
        );
        let excepted = [
            ("HTTPS_PROXY", "http://proxy:3128"),
            ("NO_PROXY", "10.0.0.0/8, *.example.com example.net:8443"),
        ];
        assert_eq!(chosen(&excepted, "https://g.example.com"), None);
        assert_eq!(chosen(&excepted, "https://10.1.2.3"), None);
        assert_eq!(chosen(&excepted, "https://example.net:8443"), None);
        assert!(chosen(&excepted, "https://example.net").is_some());
        assert!(chosen(&excepted, "https://example.org").is_some());
        assert_eq!(chosen(&https, "https://localhost:8443"), None);
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_refused_without_showing_its_password() {
        let error = proxies(&[("HTTPS_PROXY", "ftp://user:hunter2@proxy")])
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("HTTPS_PROXY is not"), "{error}");
        assert!(!error.contains("hunter2"));
    }
}
