//! `Registrar`: keeps what is written down of this gateway's sessions true: which can be given jobs, and that
//! the row of one which is gone goes too.
//!
//! Owns what is not written yet. A store that does not answer is asked again until it does, and a row that was
//! left behind all the same (a commit whose end nobody saw) is found in the catalogue and removed: no row
//! outlives its socket by a minute. It decides nothing about sessions.

use std::collections::HashMap;
use std::time::Duration;

use actix::prelude::*;

use super::catalogue::CatalogueReader;
use super::identity::GatewayIdentity;
use super::vital::Vital;
use crate::clock::Clock;
use crate::ids::{GatewayId, SessionId};
use crate::storage::{SessionState, Store, StoreError};

/// How soon what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the catalogue is searched for rows of sessions that are not here.
const LOOK_ROUND: Duration = Duration::from_secs(10);
/// How old such a row is before it is removed: a session is recorded before it is known here.
const STRAY_AFTER: Duration = Duration::from_secs(30);

/// A session of this gateway stands like that. Sent by the picker.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct SessionStands {
    /// The session.
    pub session_id: SessionId,
    /// The id of this gateway under which it was opened.
    pub gateway_id: GatewayId,
    /// Whether it can be given jobs; `None`: it is gone.
    pub state: Option<SessionState>,
}

/// Remove what is written down of this session. Sent by the session.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct RemoveSession {
    /// The session.
    pub session_id: SessionId,
    /// The id of this gateway under which it was opened.
    pub gateway_id: GatewayId,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Write;

#[derive(Message)]
#[rtype(result = "()")]
struct LookRound;

/// What is to be written, and who is here.
#[derive(Debug, Default)]
struct Book {
    here: HashMap<SessionId, SessionState>,
    marks: HashMap<SessionId, (GatewayId, SessionState)>,
    removals: HashMap<SessionId, GatewayId>,
}

/// What one write takes up.
#[derive(Debug, Default)]
struct Page {
    marks: HashMap<SessionId, (GatewayId, SessionState)>,
    removals: HashMap<SessionId, GatewayId>,
}

impl Book {
    fn note(&mut self, stands: SessionStands) {
        let SessionStands {
            session_id,
            gateway_id,
            state,
        } = stands;
        let Some(state) = state else {
            self.here.remove(&session_id);
            return;
        };
        // It was recorded as ready.
        let before = self.here.insert(session_id, state);
        if before.unwrap_or(SessionState::Ready) != state {
            self.marks.insert(session_id, (gateway_id, state));
        }
    }

    fn remove(&mut self, session: SessionId, gateway: GatewayId) {
        self.here.remove(&session);
        self.marks.remove(&session);
        self.removals.insert(session, gateway);
    }

    fn is_here(&self, session: SessionId) -> bool {
        self.here.contains_key(&session)
    }

    fn has_more(&self) -> bool {
        !self.marks.is_empty() || !self.removals.is_empty()
    }

    fn take(&mut self) -> Page {
        Page {
            marks: std::mem::take(&mut self.marks),
            removals: std::mem::take(&mut self.removals),
        }
    }

    /// Takes back what was not written; what was noted meanwhile is newer.
    fn put_back(&mut self, page: Page) {
        for (session, mark) in page.marks {
            if self.is_here(session) {
                self.marks.entry(session).or_insert(mark);
            }
        }
        for (session, gateway) in page.removals {
            self.removals.entry(session).or_insert(gateway);
        }
    }
}

/// The actor.
pub struct Registrar {
    book: Book,
    writing: bool,
    store: Store,
    clock: Clock,
    catalogue: CatalogueReader,
    identity: GatewayIdentity,
    _vital: Vital,
}

impl Registrar {
    /// A registrar of no session yet.
    pub fn new(
        store: Store,
        clock: Clock,
        catalogue: CatalogueReader,
        identity: GatewayIdentity,
        vital: Vital,
    ) -> Self {
        Self {
            book: Book::default(),
            writing: false,
            store,
            clock,
            catalogue,
            identity,
            _vital: vital,
        }
    }
}

impl Actor for Registrar {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(RETRY, |_, ctx| ctx.notify(Write));
        ctx.run_interval(LOOK_ROUND, |_, ctx| ctx.notify(LookRound));
    }
}

impl Handler<SessionStands> for Registrar {
    type Result = ();

    fn handle(&mut self, stands: SessionStands, ctx: &mut Self::Context) {
        self.book.note(stands);
        ctx.notify(Write);
    }
}

impl Handler<RemoveSession> for Registrar {
    type Result = ();

    fn handle(&mut self, gone: RemoveSession, ctx: &mut Self::Context) {
        self.book.remove(gone.session_id, gone.gateway_id);
        ctx.notify(Write);
    }
}

impl Handler<Write> for Registrar {
    type Result = ();

    fn handle(&mut self, _: Write, ctx: &mut Self::Context) {
        if self.writing || !self.book.has_more() {
            return;
        }
        self.writing = true;
        write(self.store.clone(), self.clock.clone(), self.book.take())
            .into_actor(self)
            .map(|left, act, ctx| {
                act.writing = false;
                match left {
                    None => ctx.notify(Write),
                    // The next tick tries again.
                    Some(page) => act.book.put_back(page),
                }
            })
            .spawn(ctx);
    }
}

impl Handler<LookRound> for Registrar {
    type Result = ();

    fn handle(&mut self, _: LookRound, ctx: &mut Self::Context) {
        let (own, catalogue) = (self.identity.current(), self.catalogue.current());
        let old = self.clock.now().minus(STRAY_AFTER);
        let strays: Vec<_> = catalogue
            .sessions()
            .filter(|row| row.gateway_id == own && row.connected_at < old)
            .filter(|row| !self.book.is_here(row.id))
            .map(|row| row.id)
            .collect();
        for session in strays {
            log::warn!(session_id:% = session; "session {session} is recorded and not here, its row is removed");
            self.book.remove(session, own);
        }
        ctx.notify(Write);
    }
}

/// Writes a page; answers it again if the store does not answer.
async fn write(store: Store, clock: Clock, mut page: Page) -> Option<Page> {
    let mut by_gateway: HashMap<GatewayId, Vec<_>> = HashMap::new();
    for (session, (gateway, state)) in &page.marks {
        by_gateway
            .entry(*gateway)
            .or_default()
            .push((*session, *state));
    }
    for (gateway, marks) in by_gateway {
        if let Err(error) = store.session_mark(gateway, marks, clock.now()).await
            && worth_another_try(&error)
        {
            return Some(page);
        }
    }
    page.marks.clear();
    let removals: Vec<_> = page.removals.iter().map(|(id, by)| (*id, *by)).collect();
    for (session, gateway) in removals {
        if let Err(error) = store.session_close(gateway, session, clock.now()).await
            && worth_another_try(&error)
        {
            return Some(page);
        }
        page.removals.remove(&session);
    }
    None
}

fn worth_another_try(error: &StoreError) -> bool {
    if error.is_connection() {
        log::warn!(error:% = error; "what has become of sessions could not be written yet");
        return true;
    }
    log::error!(error:% = error; "the store refuses what has become of a session");
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stands(session_id: SessionId, state: Option<SessionState>) -> SessionStands {
        SessionStands {
            session_id,
            gateway_id: GatewayId::new(),
            state,
        }
    }

    fn marked(book: &mut Book) -> Vec<SessionState> {
        book.take()
            .marks
            .into_values()
            .map(|(_, state)| state)
            .collect()
    }

    #[test]
    fn only_what_differs_from_the_row_is_written() {
        use SessionState::{Draining, Ready, Unhealthy};
        let (mut book, session) = (Book::default(), SessionId::new());
        for (state, written) in [
            (Ready, vec![]),
            (Unhealthy, vec![Unhealthy]),
            (Unhealthy, vec![]),
            (Ready, vec![Ready]),
            (Draining, vec![Draining]),
            (Draining, vec![]),
        ] {
            book.note(stands(session, Some(state)));
            assert_eq!(marked(&mut book), written, "{state:?}");
        }
    }

    #[test]
    fn what_was_not_written_is_kept_unless_something_newer_is() {
        use SessionState::{Ready, Unhealthy};
        let (mut book, a, b) = (Book::default(), SessionId::new(), SessionId::new());
        for session in [a, b] {
            book.note(stands(session, Some(Ready)));
            book.note(stands(session, Some(Unhealthy)));
        }
        let page = book.take();
        book.note(stands(a, Some(Ready)));
        book.remove(b, GatewayId::new());
        book.put_back(page);
        assert_eq!(marked(&mut book), [Ready], "a is ready again, b is gone");

        book.remove(b, GatewayId::new());
        let page = book.take();
        assert!(!book.has_more());
        book.put_back(page);
        assert!(book.has_more(), "a removal is never forgotten");
    }
}
