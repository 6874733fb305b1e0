//! semilayer: query databases behind a firewall through runners that dial out.
//!
//! A company's database sits behind a firewall. Its *runner*, a small process inside that network, dials out
//! to a *gateway* over one WebSocket and idles. An application asks the gateway's REST API; the gateway
//! records a job, claims it with one conditional update, picks a healthy runner and sends the job over that
//! socket; the runner queries the database and streams the rows back. Nothing ever dials in.
//!
//! # Reading order
//!
//! [`protocol`] is what crosses the socket, [`query`] what may be asked, [`domain`] the rules that have
//! neither I/O nor a clock. [`bridge`] talks to one database each, [`storage`] to the gateway's own.
//! [`control`] holds the actors, [`web`] the routes in front of them. [`runner`] is the other end of the
//! socket. [`config`], [`process`], [`cli`] and [`dev`] start things.
//!
//! Dependencies go one way, and a test in `integration/` keeps it so:
//!
//! ```text
//! bin     → control, web | runner | cli
//! web     → control, storage, query, domain, protocol
//! control → storage, bridge, query, domain, protocol
//! runner  → bridge, query (types), protocol
//! bridge  → query (types)
//! storage → domain
//! domain, query, protocol → ids, timing, clock
//! ```
//!
//! # The actors
//!
//! Thin actors around plain structs; each owns one thing and may say only what its links allow. All of them
//! are wired in [`control::ControlPlane::start`]; none is looked up. A job travels one way:
//!
//! ```text
//!  HTTP ─► web ─Dispatch─► Dispatcher ─Place─► Picker ─Execute─► RunnerSession ─frames─► RunnerSocket ══ws══► runner
//!    ▲                         ▲                 │                  │      ▲
//!    │                         ├──────── JobReturned, JobSettled ───┤      └── rows, done, error ── RunnerSocket
//!    │                         │                 │                  ▼
//!    │                   InlineExecutor ─────────┼─────────────► JobLedger ─► Store     (claim, finish, requeue)
//!    │                         │                 │ Execute          ▲
//!    │                         │                 ▼                  │ supersede
//!    │                         │              PeerLink ─────────────┘
//!    │                         │                 ╚══http══► another gateway's web, Dispatcher, RunnerSession
//!    └──────────── reply stream, bounded per job ◄──────────── RunnerSession, InlineExecutor or PeerLink
//!      DetachedJobs    Drainer    HeartbeatMonitor    ClaimSweeper    Registrar (session rows)
//!                      Cluster (presence, catalogue, links)
//! ```
//!
//! An actor that panics dies without a word, so every core actor carries a [`control::vital::Vital`] that
//! ends the process; its supervisor starts it again, and state is rebuilt from the store.
//!
//! # A job's life
//!
//! ```text
//!   pending ──claim──► claimed ──mark──► dispatched ──► completed | failed | cancelled | expired
//!      ▲                  │                  │
//!      └── stale, 30 s ───┘                  └─ refused, or lost before its frame left ─► pending, attempt + 1
//! ```
//!
//! The promise: each attempt is sent at most once, and a second attempt exists only if the first certainly
//! never left the gateway. The door to execution is one statement, `UPDATE … WHERE id = … AND status =
//! 'pending' AND attempt = … RETURNING`; whoever gets no row does nothing. For a job whose caller waits, the
//! record, the claim and the mark are one transaction, committed before the frame goes out.
//!
//! # Five walks
//!
//! **A job from POST to result.** `web::query` finds the key and the lens in the [`control::Catalogue`] (the
//! hot path reads nothing from the store), plans an operation in column names and calls
//! [`control::ControlPlane::dispatch`], which makes a reply channel and tells the `Dispatcher`. It asks the
//! `Picker`, which chooses uniformly among the healthy sessions of the source's runners and hands the job to
//! one `RunnerSession`. That has the `JobLedger` claim it (whatever arrives during one transaction goes into
//! the next), opens the credentials, and sends the frame. Rows come back in binary, already encoded, and go
//! through the reply channel into the response without being parsed; what the client takes becomes credit
//! for the runner. At `done` the session ends the reply, has the ledger record it, and tells the dispatcher.
//!
//! **A runner that dies.** Its socket closes, or two heartbeats are missed and then the `HeartbeatMonitor`
//! has the session closed. The session takes itself out of the picker's table and fails every job whose
//! frame may have left: 502 `runner_failed`, with how far it had come. A job whose claim was still under way
//! certainly did not leave: it goes back to `pending` as its next attempt, and to another runner; its caller
//! notices nothing.
//!
//! **A job whose runner is connected elsewhere.** The `Picker` finds the session among the rows that the
//! catalogue holds of the other gateways, and the job goes to the `PeerLink` of the one that has it: one HTTP
//! request with ids and the operation. That gateway checks the tenant again and hands the job to that session and
//! to nobody else; what the session does not take comes back before anything is claimed, and is placed again
//! here. Rows come back as frames on the response, which is read no faster than the caller reads. Hanging up
//! cancels the job.
//!
//! **A job that nobody waits for.** `web::detached` records it `pending` and answers 202. `DetachedJobs` of
//! every gateway looks every second for jobs that its own sessions could execute, claims some, and hands each to
//! its dispatcher as if a caller had come; the session marks it in the store before the frame leaves. Its
//! reply is read, sealed and written down together with `completed`. A runner or gateway that is lost
//! meanwhile makes it `pending` again, as its next attempt, three times at most.
//!
//! **A gateway that dies.** Its sockets close, and runners reconnect. The others see its counter stand still and
//! declare it lost: its sessions go, what it had sent fails, what it had claimed but not sent is given back.
//! A job that it was handed by another gateway is placed again if the store says that it had not begun, and
//! then can never begin under its old attempt. If it was only stopped, it finds out with its next renewal, ends
//! what it holds and goes on under a new id. Nothing stays unfinished for longer than a minute after its
//! deadline.

pub mod bridge;
#[cfg(feature = "gateway")]
pub mod cli;
pub mod clock;
#[cfg(feature = "gateway")]
pub mod config;
#[cfg(feature = "gateway")]
pub mod control;
#[cfg(feature = "gateway")]
pub mod dev;
pub mod domain;
#[cfg(feature = "gateway")]
pub mod gateway;
pub mod ids;
pub mod logging;
#[cfg(any(feature = "gateway", feature = "runner"))]
pub mod no_proxy;
#[cfg(feature = "gateway")]
pub mod process;
pub mod protocol;
pub mod query;
#[cfg(feature = "runner")]
pub mod runner;
#[cfg(feature = "gateway")]
pub mod storage;
pub mod timing;
pub mod tls;
#[cfg(feature = "gateway")]
pub mod web;
