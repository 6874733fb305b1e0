//! `GET /connect`: the upgrade of a runner's socket. Authentication happens before it, in the store
//! itself, so that a revoked token never opens a session, whatever the catalogue still holds.

use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::Extensions;
use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use actix_web_actors::ws::WsResponseBuilder;

use super::Front;
use super::error::{ApiError, Code};
use super::frame_guard::FrameGuard;
use super::socket::{Gauges, RunnerSocket};
use crate::control::session::{Identity, SocketLink};
use crate::domain::tokens;
use crate::protocol::MAX_MESSAGE_BYTES;
use crate::storage::{Key, KeyKind, StoreError};

/// The largest WebSocket message.
const MAX_MESSAGE: usize = MAX_MESSAGE_BYTES as usize;

/// When a runner that came to a stopping gateway is to dial again: the load balancer takes it elsewhere then,
/// if not at once.
const RECONNECT: Duration = Duration::from_secs(1);

/// A second handle on a connection, which closes it under whoever uses the first.
#[derive(Clone)]
pub(super) struct Connection(Arc<OwnedFd>);

impl Connection {
    /// Captures the connection as it is accepted; for `HttpServer::on_connect`.
    pub(super) fn capture(io: &dyn std::any::Any, data: &mut Extensions) {
        use actix_tls::accept::rustls_0_23::TlsStream;
        use actix_web::rt::net::TcpStream as Plain;
        let plain = io.downcast_ref::<Plain>();
        let tls = || {
            io.downcast_ref::<TlsStream<Plain>>()
                .map(|tls| tls.get_ref().0)
        };
        let descriptor = plain
            .or_else(tls)
            .and_then(|stream| stream.as_fd().try_clone_to_owned().ok());
        if let Some(descriptor) = descriptor {
            data.insert(Self(Arc::new(descriptor)));
        }
    }

    fn cut(&self) {
        // The descriptor may be closed already, and then there is nothing to cut.
        if let Ok(descriptor) = self.0.try_clone() {
            let _ = TcpStream::from(descriptor).shutdown(Shutdown::Both);
        }
    }
}

/// Opens a runner's socket.
pub(super) async fn connect(
    request: HttpRequest,
    payload: web::Payload,
    front: web::Data<Front>,
) -> Result<HttpResponse, ApiError> {
    if front.gateway.is_stopping() {
        return Err(
            ApiError::new(Code::Draining, "this gateway is stopping, connect again")
                .retry_after(RECONNECT),
        );
    }
    let key = authenticate(&request, &front).await?;
    // The session judges its token by the catalogue, which may not know yet of a runner that the store has.
    if !front
        .gateway
        .catalogue
        .current()
        .token_is_live(key.id, front.gateway.clock.now())
    {
        front.gateway.refresh().await?;
    }
    let (Some(runner_id), Some(connection)) =
        (key.runner_id, request.conn_data::<Connection>().cloned())
    else {
        return Err(ApiError::internal(anyhow::anyhow!(
            "a runner's key without a runner, or no connection data"
        )));
    };
    let identity = Identity {
        runner_id,
        organisation_id: key.organisation_id,
        key_id: key.id,
        remote_addr: Some(front.client(&request).to_string()),
    };
    let control = front.gateway.clone();
    let open = Box::new(move |commands, gauges: Gauges| {
        let Gauges {
            queued,
            written,
            received,
        } = gauges;
        control.open_session(
            identity,
            SocketLink {
                commands,
                queued,
                written,
                received,
                cut: Box::new(move || connection.cut()),
            },
        )
    });
    let guarded = FrameGuard::new(payload, MAX_MESSAGE as u64);
    WsResponseBuilder::new(RunnerSocket::new(open, MAX_MESSAGE), &request, guarded)
        .frame_size(MAX_MESSAGE)
        .start()
        .map_err(|refused| ApiError::foreign(&refused))
}

/// The live runner's key behind the request's token. Failures, and only they, are throttled.
async fn authenticate(request: &HttpRequest, front: &Front) -> Result<Key, ApiError> {
    let Some(token) = token(request) else {
        return Err(front.refuse(
            request,
            "",
            "send the runner's token: `Authorization: Bearer rk_…`",
        ));
    };
    let key = match front
        .gateway
        .store
        .runner_key_by_hash(&tokens::hash_hex(&token))
        .await
    {
        Ok(key) => key,
        Err(StoreError::NotFound) => {
            return Err(front.refuse(request, &token, "no runner has this token"));
        }
        Err(error) => return Err(error.into()),
    };
    if key.kind != KeyKind::Runner {
        return Err(ApiError::new(
            Code::AccessDenied,
            "only a runner's token (`rk_…`) may connect",
        ));
    }
    if !key.is_live(front.gateway.clock.now()) {
        return Err(ApiError::new(
            Code::AccessDenied,
            "this token was rotated, revoked or has expired",
        ));
    }
    Ok(key)
}

/// The token, from the header or, as runners in the field send it, from the query string.
fn token(request: &HttpRequest) -> Option<String> {
    let from_header = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            value
                .strip_prefix("Bearer ")
                .or_else(|| value.strip_prefix("bearer "))
        })
        .map(|token| token.trim().to_owned());
    from_header.or_else(|| {
        url::form_urlencoded::parse(request.query_string().as_bytes())
            .find(|(name, _)| name == "token")
            .map(|(_, token)| token.into_owned())
    })
}
