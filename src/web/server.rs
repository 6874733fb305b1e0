//! The listeners of a gateway: bound, served and stopped. What they serve is in `routes`.

use std::net::SocketAddr;
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::{App, HttpResponse, HttpServer, middleware, web};
use anyhow::Context as _;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::ExposeSecret as _;

use super::client::TrustedProxies;
use super::connect::Connection;
use super::dispatch::{self, InternalAccess};
use super::fallback::fallback;
use super::routes::PublicRoutes;
use super::{Access, Front, internal, request_id};
use crate::config::{GatewayConfig, TlsFiles};
use crate::control::ControlPlane;

/// How long a client has to send its request's head, and a TLS handshake may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idle connection of another gateway is kept.
const PEER_KEEP_ALIVE: Duration = Duration::from_secs(60);
/// How long open connections get once nothing runs any more.
const CLOSE_TIMEOUT: u64 = 5;

/// The running listeners.
pub struct Listeners {
    /// Where runners and REST callers arrive.
    pub public: SocketAddr,
    /// Where `/dispatch` and other gateways arrive, if they do.
    pub internal: Option<SocketAddr>,
    handles: Vec<ServerHandle>,
}

impl Listeners {
    /// Binds and serves; port 0 takes a free one, told by the answer.
    ///
    /// # Errors
    ///
    /// When an address cannot be bound or the certificate cannot be read.
    pub fn start(config: &GatewayConfig, control: &ControlPlane) -> anyhow::Result<Self> {
        let access = Access {
            operator_token: config.operator_token.clone(),
            trusted_proxies: TrustedProxies::new(config.trusted_proxies.clone()),
        };
        let front = web::Data::new(Front::new(control.clone(), access));
        let (public, handle) = serve_public(config, front.clone())?;
        let mut listeners = Self {
            public,
            internal: None,
            handles: vec![handle],
        };
        if let Some(internal) = &config.internal {
            let access = internal.token.as_ref();
            let access = access.map(|token| InternalAccess::new(token.expose_secret()));
            if access.is_none() {
                log::info!(
                    "SEMILAYER_INTERNAL_TOKEN is not set, the internal listener serves other gateways and not /dispatch"
                );
            }
            let (address, handle) = serve_internal(internal.listen, front, access)?;
            listeners.internal = Some(address);
            listeners.handles.push(handle);
        } else {
            log::info!("the internal listener (/dispatch, other gateways) is not asked for");
        }
        Ok(listeners)
    }

    /// Stops taking connections and closes those that are open, once what they wait for is there.
    pub async fn stop(self) {
        for handle in self.handles {
            handle.stop(true).await;
        }
    }
}

fn serve_public(
    config: &GatewayConfig,
    front: web::Data<Front>,
) -> anyhow::Result<(SocketAddr, ServerHandle)> {
    let routes = PublicRoutes::new(front);
    let server = HttpServer::new(move || {
        let routes = routes.clone();
        App::new()
            .wrap(middleware::from_fn(request_id::middleware))
            .configure(move |config| routes.configure(config))
    })
    .on_connect(Connection::capture)
    .h1_allow_half_closed(false)
    .client_request_timeout(HEAD_TIMEOUT)
    .tcp_nodelay(true)
    .shutdown_timeout(CLOSE_TIMEOUT)
    .disable_signals();
    let what = || format!("cannot listen on {} (SEMILAYER_LISTEN)", config.listen);
    let server = match &config.tls {
        Some(files) => server
            .bind_rustls_0_23(config.listen, tls(files)?)
            .with_context(what)?,
        None => server.bind(config.listen).with_context(what)?,
    };
    let address = *server.addrs().first().context("no address was bound")?;
    let server = server.run();
    let handle = server.handle();
    actix_web::rt::spawn(server);
    Ok((address, handle))
}

fn serve_internal(
    listen: SocketAddr,
    front: web::Data<Front>,
    access: Option<InternalAccess>,
) -> anyhow::Result<(SocketAddr, ServerHandle)> {
    let access = access.map(web::Data::new);
    let server = HttpServer::new(move || {
        let (front, access) = (front.clone(), access.clone());
        App::new()
            .wrap(middleware::from_fn(request_id::middleware))
            .app_data(front)
            .configure(internal::configure)
            .configure(move |config| {
                if let Some(access) = access {
                    dispatch::configure(config, access);
                }
            })
            .route("/health", web::get().to(HttpResponse::Ok))
            .default_service(web::to(fallback))
    })
    // Longer than other gateways keep a connection for their next job.
    .keep_alive(PEER_KEEP_ALIVE)
    .h1_allow_half_closed(false)
    .client_request_timeout(HEAD_TIMEOUT)
    .tcp_nodelay(true)
    .shutdown_timeout(CLOSE_TIMEOUT)
    .disable_signals()
    .bind(listen)
    .with_context(|| format!("cannot listen on {listen} (SEMILAYER_INTERNAL_LISTEN)"))?;
    let address = *server.addrs().first().context("no address was bound")?;
    let server = server.run();
    let handle = server.handle();
    actix_web::rt::spawn(server);
    Ok((address, handle))
}

fn tls(files: &TlsFiles) -> anyhow::Result<ServerConfig> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect)
        .with_context(|| {
            format!(
                "cannot read {} (SEMILAYER_TLS_CERT)",
                files.certificate.display()
            )
        })?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .with_context(|| format!("cannot read {} (SEMILAYER_TLS_KEY)", files.key.display()))?;
    ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .context("SEMILAYER_TLS_CERT and SEMILAYER_TLS_KEY do not go together")
}
