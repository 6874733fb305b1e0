//! Hearing of changes: what is announced, what is not, and a connection that is lost.

use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;
use crate::domain::job::JobStatus;

contract!(a_store_can_be_listened_to);

/// More than an announcement takes.
const SOON: Duration = Duration::from_secs(4);

async fn a_store_can_be_listened_to(fixture: Fixture) {
    let mut listener = fixture.store.listen().await.unwrap();
    world(&fixture.second().await, "acme").await;
    let heard = timeout(Duration::from_millis(500), listener.next()).await;
    // Nobody else changes the embedded store, so there is nothing to hear.
    assert_eq!(heard.is_ok(), !fixture.store.is_embedded());
    assert!(heard.is_err() || heard.unwrap().is_ok());
}

/// Hears that many announcements of what has happened, and then its own: they come in the order of commits.
async fn hears(listener: &mut Listener, store: &Store, announcements: usize, what: &str) {
    unit!(store, Change, _connection => { Ok(()) }).unwrap();
    for _ in 0..=announcements {
        let heard = timeout(SOON, listener.next()).await;
        heard
            .unwrap_or_else(|_| panic!("{what}: too little was announced"))
            .unwrap();
    }
    let more = timeout(Duration::from_millis(50), listener.next()).await;
    assert!(more.is_err(), "{what}: too much was announced");
}

#[test]
fn every_change_of_the_catalogue_is_announced_and_no_step_of_a_job() {
    on_postgres(async |fixture| {
        let store = &fixture.store;
        let mut listener = fixture.second().await.listen().await.unwrap();
        let acme = world(store, "acme").await;
        hears(&mut listener, store, 6, "a tenant").await;

        let own = gateway(store).await;
        let session = acme.session(own);
        store.session_open(session.clone()).await.unwrap();
        let drained = vec![(session.id, SessionState::Draining)];
        store.session_mark(own, drained, at(2)).await.unwrap();
        store.session_close(own, session.id, at(3)).await.unwrap();
        hears(&mut listener, store, 4, "presence").await;

        let (org, env) = (acme.organisation, acme.environment);
        let (runner, source) = (acme.runner, acme.source);
        store
            .assignment_add(org, runner, source, at(1))
            .await
            .unwrap();
        store
            .assignment_remove(org, runner, source, at(2))
            .await
            .unwrap();
        store
            .assignment_replace(org, runner, vec![source], at(3))
            .await
            .unwrap();
        let drain = RunnerChange {
            drained_at: Some(Some(at(4))),
            ..RunnerChange::default()
        };
        store
            .runner_update(org, runner, drain, at(4))
            .await
            .unwrap();
        let rotation = Rotation {
            key: key_of(org, KeyKind::Runner, "next"),
            old_keys_expire_at: None,
        };
        store
            .runner_rotate(org, runner, rotation, at(5))
            .await
            .unwrap();
        store.runner_revoke(org, runner, at(6)).await.unwrap();
        store.key_revoke(org, acme.key, at(7)).await.unwrap();
        store.runner_delete(org, runner, at(8)).await.unwrap();
        store.lens_delete(env, acme.lens, at(9)).await.unwrap();
        store.source_delete(env, source, at(9)).await.unwrap();
        store
            .environment_rename(org, env, "e".into(), at(9))
            .await
            .unwrap();
        store.environment_delete(org, env, at(9)).await.unwrap();
        store
            .organisation_rename(org, "o".into(), at(9))
            .await
            .unwrap();
        store.organisation_delete(org, at(9)).await.unwrap();
        hears(&mut listener, store, 14, "administration").await;

        let other = gateway(store).await;
        store.gateway_declare_lost(own, 0, at(20)).await.unwrap();
        store.gateway_leave(other, at(21)).await.unwrap();
        hears(&mut listener, store, 3, "gateways that go").await;
    });
}

#[test]
fn what_happens_all_the_time_is_not_announced() {
    on_postgres(async |fixture| {
        let store = &fixture.store;
        let acme = world(store, "acme").await;
        let own = gateway(store).await;
        let session = acme.session(own);
        store.session_open(session.clone()).await.unwrap();
        let mut listener = store.listen().await.unwrap();
        let job = acme.job();
        store
            .job_claim_sync(vec![acme.claim(own, &job)], at(1))
            .await
            .unwrap();
        store
            .job_finish(vec![end(own, &job, JobStatus::Completed)])
            .await
            .unwrap();
        store
            .job_take_pending(own, acme.source, 1, at(1))
            .await
            .unwrap();
        store.job_sweep(at(1), at(1), at(1), 1).await.unwrap();
        store.gateway_renew(own, at(1)).await.unwrap();
        let seen = Touch {
            session: session.id,
            seen_at: at(9),
        };
        store.session_touch(vec![seen]).await.unwrap();
        store.tombstone_prune(at(1)).await.unwrap();
        // Nor is what did not happen.
        let undone: Result<(), StoreError> =
            unit!(store, Change, _connection => { Err(StoreError::NotFound) });
        undone.unwrap_err();
        hears(&mut listener, store, 0, "daily business").await;
    });
}

#[test]
fn a_listener_that_was_cut_off_says_so() {
    on_postgres(async |fixture| {
        let mut listener = fixture.store.listen().await.unwrap();
        hosted::execute(
            &fixture.store,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND query LIKE 'LISTEN%'",
        )
        .await
        .unwrap();
        let lost = timeout(SOON, listener.next()).await.unwrap();
        assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{lost:?}");
        let again = timeout(SOON, listener.next()).await.unwrap();
        assert!(again.is_err(), "it stays lost");
        let mut listener = fixture.store.listen().await.unwrap();
        hears(&mut listener, &fixture.store, 0, "a new one").await;
    });
}

#[test]
fn a_listener_whose_connection_falls_silent_notices() {
    on_postgres(async |fixture| {
        // A line in between that can be held without being cut.
        let mut url = url::Url::parse(&fixture.url).unwrap();
        let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5432));
        let line = TcpListener::bind("127.0.0.1:0").await.unwrap();
        url.set_ip_host(line.local_addr().unwrap().ip()).unwrap();
        url.set_port(Some(line.local_addr().unwrap().port()))
            .unwrap();
        let (hold, is_held) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                let (mut client, _) = line.accept().await.unwrap();
                let mut server = TcpStream::connect(&server).await.unwrap();
                let mut is_held = is_held.clone();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = async { is_held.wait_for(|held| *held).await.is_ok() } => std::future::pending().await,
                    }
                });
            }
        });
        let store = Store::open(url.as_str(), &fixture.runtime).await.unwrap();
        let mut listener = store.listen().await.unwrap();
        listener.silence = Duration::from_millis(50);
        let heard = timeout(Duration::from_millis(500), listener.next()).await;
        assert!(
            heard.is_err(),
            "asked several times, it answered: {heard:?}"
        );
        hold.send(true).unwrap();
        let lost = timeout(2 * SOON, listener.next()).await.unwrap();
        assert!(matches!(lost, Err(StoreError::Unavailable(_))), "{lost:?}");
    });
}
