//! `/internal/*` on the internal listener: what gateways ask of each other. A gateway is known by the token that
//! all of one cluster derive from their master key.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::Method;
use actix_web::web::{self, Data, Json, ServiceConfig};
use actix_web::{FromRequest, HttpRequest, HttpResponse};
use futures_util::{StreamExt as _, stream};

use super::Front;
use super::auth::bearer;
use super::error::{ApiError, ApiResult, Code};
use super::fallback::only;
use crate::control::peer::wire::{
    CANCEL_PATH, CancelAnswer, CancelRequest, EXECUTE_PATH, ExecuteRequest, MAX_REQUEST, PeerFrame,
};

/// A gateway of this cluster. An extractor, and before the body's: what a stranger sends is not read.
struct Peer;

impl Peer {
    fn of(request: &HttpRequest) -> ApiResult<Self> {
        let front = request.app_data::<Data<Front>>();
        let front = front.ok_or_else(|| {
            ApiError::internal(anyhow::anyhow!(
                "the routes were configured without their state"
            ))
        })?;
        if front.gateway.peer_tokens.admit(bearer(request)?) {
            return Ok(Self);
        }
        Err(ApiError::new(
            Code::InvalidKey,
            "this is not the token of a gateway of this cluster; all must have the same SEMILAYER_MASTER_KEY",
        ))
    }
}

impl FromRequest for Peer {
    type Error = ApiError;
    type Future = Ready<ApiResult<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Self::of(request))
    }
}

/// The routes for other gateways.
pub(super) fn configure(config: &mut ServiceConfig) {
    let json = web::JsonConfig::default()
        .limit(MAX_REQUEST)
        .error_handler(|error, _| ApiError::invalid("", error.to_string()).into());
    config
        .service(
            web::resource(EXECUTE_PATH)
                .app_data(json.clone())
                .post(execute)
                .default_service(only(Method::POST)),
        )
        .service(
            web::resource(CANCEL_PATH)
                .app_data(json)
                .post(cancel)
                .default_service(only(Method::POST)),
        );
}

/// Has a job executed by a session of this gateway. The answer begins at once and ends when the job does; hanging
/// up on it cancels the job.
async fn execute(front: Data<Front>, _: Peer, request: Json<ExecuteRequest>) -> HttpResponse {
    let reply = front.gateway.execute_for_peer(request.into_inner());
    let steps = stream::unfold(reply, |mut reply| async move {
        let frame = PeerFrame::next_of(&mut reply).await?;
        Some((frame, reply))
    });
    let pieces = steps.flat_map(|frame| {
        let pieces = frame.encode().into_iter();
        stream::iter(
            pieces
                .filter(|piece| !piece.is_empty())
                .map(Ok::<_, ApiError>),
        )
    });
    HttpResponse::Ok()
        .content_type("application/octet-stream")
        .streaming(Box::pin(pieces))
}

/// Ends a job early that runs here.
async fn cancel(front: Data<Front>, _: Peer, request: Json<CancelRequest>) -> Json<CancelAnswer> {
    let cancelled = front.gateway.cancel(request.job_id).await;
    Json(CancelAnswer { cancelled })
}
