//! The local `/health`, for the orchestrator and for `status`: 200 when the runner is connected, 503 when
//! not. The only thing that listens, and only if `PORT` is set; it takes no input.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::worker::{Health, State, Worker};

/// How many callers are served at once.
const CONNECTIONS: usize = 64;
/// How long a caller may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves `/health` until it is dropped.
pub async fn serve(listener: TcpListener, worker: Arc<Worker>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                log::warn!("/health cannot accept a connection: {e}");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let worker = Arc::clone(&worker);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                std::future::ready(Ok::<_, Infallible>(answer(&request, &worker)))
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(e) = served {
                log::debug!("/health: {e}");
            }
            drop(permit);
        });
    }
}

fn answer(request: &Request<Incoming>, worker: &Worker) -> Response<Full<Bytes>> {
    let health = worker.health();
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/health") => {
            let up = health.status == State::Connected;
            (
                if up {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                },
                serde_json::to_vec(&health),
            )
        }
        (_, "/health") => (StatusCode::METHOD_NOT_ALLOWED, Ok(Vec::new())),
        _ => (StatusCode::NOT_FOUND, Ok(Vec::new())),
    };
    let mut response = Response::new(Full::from(body.unwrap_or_default()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

/// Asks the runner on this machine how it is.
///
/// # Errors
///
/// When nobody, or something else, answers on that port.
pub async fn ask(port: u16) -> io::Result<Health> {
    let asked = async {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let connection = tokio::spawn(connection);
        let request = Request::get("/health")
            .header(header::HOST, "localhost")
            .body(Empty::<Bytes>::new());
        let response = sender
            .send_request(request.map_err(io::Error::other)?)
            .await
            .map_err(io::Error::other)?;
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(io::Error::other)?
            .to_bytes();
        connection.abort();
        serde_json::from_slice(&body)
            .map_err(|e| io::Error::other(format!("not a runner's /health: {e}")))
    };
    timeout(REQUEST_TIMEOUT, asked)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
