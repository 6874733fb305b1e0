//! Reading only what has changed comes to the same as reading everything.

use std::collections::BTreeSet;

use super::*;

contract!(
    what_was_written_later_is_listed_and_nothing_else,
    every_change_is_listed,
    what_was_deleted_is_listed,
    an_assignment_that_is_back_is_not_listed_as_deleted,
    a_session_is_followed_from_open_to_close,
    tombstones_are_forgotten,
    deltas_come_to_the_same_as_everything,
);

async fn changes(store: &Store, since: u64) -> Changes {
    store.catalogue_changes(at(since)).await.unwrap()
}

fn gone(kind: TombstoneKind, id: impl ToString) -> Tombstone {
    Tombstone {
        kind,
        id: id.to_string(),
    }
}

async fn what_was_written_later_is_listed_and_nothing_else(fixture: Fixture) {
    let (acme, store) = (world(&fixture.store, "acme").await, &fixture.store);
    let own = gateway(store).await;
    store
        .assignment_add(acme.organisation, acme.runner, acme.source, at(0))
        .await
        .unwrap();
    let all = store.catalogue_load(at(1)).await.unwrap();
    assert_eq!((all.gateways.len(), all.sessions.len()), (1, 0));
    let before = UtcTime::new(at(0).get() - chrono::TimeDelta::microseconds(1));
    let listed = store.catalogue_changes(before).await.unwrap();
    assert_eq!((listed.changed, listed.removed), (all.clone(), vec![]));
    // Gateways are always complete: they write all the time.
    let nothing = Catalogue {
        gateways: all.gateways,
        ..Catalogue::default()
    };
    assert_eq!(changes(store, 0).await.changed, nothing);
    store.session_open(acme.session(own)).await.unwrap();
    let seen = Touch {
        session: store.session_list_all().await.unwrap()[0].id,
        seen_at: at(50),
    };
    store.session_touch(vec![seen]).await.unwrap();
    store.gateway_renew(own, at(50)).await.unwrap();
    let listed = changes(store, 1).await;
    assert_eq!(listed.changed.gateways[0].renewals, 1);
    assert_eq!(
        (listed.changed.runners, listed.changed.sessions),
        (vec![], vec![])
    );
}

async fn every_change_is_listed(fixture: Fixture) {
    let (a, store) = (world(&fixture.store, "a").await, &fixture.store);
    let (org, env) = (a.organisation, a.environment);
    store
        .organisation_rename(org, "new".into(), at(10))
        .await
        .unwrap();
    store
        .environment_rename(org, env, "new".into(), at(11))
        .await
        .unwrap();
    let change = SourceChange {
        name: Some("new".into()),
        ..SourceChange::default()
    };
    store
        .source_update(env, a.source, change, at(12))
        .await
        .unwrap();
    let change = LensChange {
        name: Some("new".into()),
        ..LensChange::default()
    };
    store
        .lens_update(env, a.lens, change, at(13))
        .await
        .unwrap();
    store
        .assignment_add(org, a.runner, a.source, at(14))
        .await
        .unwrap();
    let rotation = Rotation {
        key: NewKey {
            changed_at: at(15),
            ..key_of(org, KeyKind::Runner, "next")
        },
        old_keys_expire_at: None,
    };
    store
        .runner_rotate(org, a.runner, rotation, at(15))
        .await
        .unwrap();
    store.key_revoke(org, a.key, at(16)).await.unwrap();
    let group = NewRunnerGroup {
        id: GroupId::new(),
        name: "g".into(),
        dispatch: GroupDispatch::All,
    };
    store.group_create(org, group, at(17)).await.unwrap();
    store.runner_revoke(org, a.runner, at(18)).await.unwrap();
    let kinds = |changed: &Catalogue| {
        [
            changed.organisations.len(),
            changed.environments.len(),
            changed.sources.len(),
            changed.lenses.len(),
            changed.assignments.len(),
            changed.keys.len(),
            changed.groups.len(),
            changed.runners.len(),
        ]
    };
    let cases = [
        (9, [1, 1, 1, 1, 1, 3, 1, 1]),
        (10, [0, 1, 1, 1, 1, 3, 1, 1]),
        (11, [0, 0, 1, 1, 1, 3, 1, 1]),
        (12, [0, 0, 0, 1, 1, 3, 1, 1]),
        (13, [0, 0, 0, 0, 1, 3, 1, 1]),
        // The old key ended, another one was revoked; the new one ended with its runner.
        (14, [0, 0, 0, 0, 0, 3, 1, 1]),
        (15, [0, 0, 0, 0, 0, 2, 1, 1]),
        (16, [0, 0, 0, 0, 0, 1, 1, 1]),
        (17, [0, 0, 0, 0, 0, 1, 0, 1]),
        (18, [0; 8]),
    ];
    for (since, expected) in cases {
        let listed = changes(store, since).await;
        assert_eq!(kinds(&listed.changed), expected, "since {since}");
    }
    let keys = changes(store, 9).await.changed.keys;
    assert!(keys.iter().all(|key| key.revoked_at.is_some()));
}

async fn what_was_deleted_is_listed(fixture: Fixture) {
    use TombstoneKind::*;
    let (a, store) = (world(&fixture.store, "a").await, &fixture.store);
    let (org, env) = (a.organisation, a.environment);
    let group = NewRunnerGroup {
        id: GroupId::new(),
        name: "g".into(),
        dispatch: GroupDispatch::All,
    };
    let group = store.group_create(org, group, at(0)).await.unwrap().id;
    store
        .assignment_replace(org, a.runner, vec![a.source], at(0))
        .await
        .unwrap();
    // What is refused leaves nothing.
    store.source_delete(env, a.source, at(5)).await.unwrap_err();
    assert_eq!(changes(store, 0).await.removed, []);
    store
        .assignment_replace(org, a.runner, vec![], at(10))
        .await
        .unwrap();
    store.lens_delete(env, a.lens, at(11)).await.unwrap();
    store.source_delete(env, a.source, at(12)).await.unwrap();
    store.runner_delete(org, a.runner, at(13)).await.unwrap();
    store.group_delete(org, group, at(14)).await.unwrap();
    store.environment_delete(org, env, at(15)).await.unwrap();
    store.organisation_delete(org, at(16)).await.unwrap();
    let expected = [
        gone(Assignment, format!("{}/{}", a.runner, a.source)),
        gone(Lens, a.lens),
        gone(Source, a.source),
        gone(Runner, a.runner),
        gone(Group, group),
        gone(Environment, env),
        gone(Organisation, org),
    ];
    for since in 9..=16 {
        let mut removed = changes(store, since).await.removed;
        let expected = expected.get(since.saturating_sub(9) as usize..);
        removed.sort_by_key(|one| expected.unwrap().iter().position(|other| other == one));
        assert_eq!(removed, expected.unwrap(), "since {since}");
    }
}

async fn an_assignment_that_is_back_is_not_listed_as_deleted(fixture: Fixture) {
    let (a, store) = (world(&fixture.store, "a").await, &fixture.store);
    let org = a.organisation;
    let add = |second| store.assignment_add(org, a.runner, a.source, at(second));
    let remove = |second| store.assignment_remove(org, a.runner, a.source, at(second));
    let replace = |second| store.assignment_replace(org, a.runner, vec![a.source], at(second));
    let is_there = async || {
        let listed = changes(store, 0).await;
        (listed.changed.assignments.len(), listed.removed.len())
    };
    add(1).await.unwrap();
    remove(2).await.unwrap();
    assert_eq!(is_there().await, (0, 1));
    add(3).await.unwrap();
    assert_eq!(is_there().await, (1, 0));
    remove(4).await.unwrap();
    remove(5).await.unwrap_err();
    assert_eq!(is_there().await, (0, 1));
    replace(6).await.unwrap();
    assert_eq!(is_there().await, (1, 0));
}

async fn a_session_is_followed_from_open_to_close(fixture: Fixture) {
    let (a, store) = (world(&fixture.store, "a").await, &fixture.store);
    let (own, other) = (gateway(store).await, gateway(store).await);
    let session = a.session(own);
    store.session_open(session.clone()).await.unwrap();
    let listed = changes(store, 0).await.changed;
    assert_eq!(listed.sessions, std::slice::from_ref(&session));
    // It was seen for the first time, which says more than that it was seen.
    assert_eq!(listed.runners.len(), 1);
    assert_eq!(listed.runners[0].last_seen_at, Some(at(1)));
    let mark =
        |gateway, state, second| store.session_mark(gateway, vec![(session.id, state)], at(second));
    mark(other, SessionState::Draining, 2).await.unwrap();
    mark(own, SessionState::Ready, 3).await.unwrap();
    store.session_mark(own, vec![], at(3)).await.unwrap();
    assert_eq!(changes(store, 1).await.changed.sessions, []);
    mark(own, SessionState::Unhealthy, 4).await.unwrap();
    let marked = Session {
        state: SessionState::Unhealthy,
        changed_at: at(4),
        ..session.clone()
    };
    assert_eq!(changes(store, 3).await.changed.sessions, [marked]);
    store.session_close(own, session.id, at(5)).await.unwrap();
    store.session_close(own, session.id, at(6)).await.unwrap();
    let removed = [gone(TombstoneKind::Session, session.id)];
    assert_eq!(changes(store, 4).await.removed, removed);
    assert_eq!(changes(store, 5).await.removed, []);
    let again = Session {
        connected_at: at(7),
        changed_at: at(7),
        ..a.session(own)
    };
    store.session_open(again).await.unwrap();
    assert_eq!(changes(store, 6).await.changed.runners, []);
}

async fn tombstones_are_forgotten(fixture: Fixture) {
    let (a, store) = (world(&fixture.store, "a").await, &fixture.store);
    store
        .lens_delete(a.environment, a.lens, at(10))
        .await
        .unwrap();
    store
        .runner_delete(a.organisation, a.runner, at(20))
        .await
        .unwrap();
    assert_eq!(store.tombstone_prune(at(10)).await.unwrap(), 0);
    assert_eq!(store.tombstone_prune(at(15)).await.unwrap(), 1);
    assert_eq!(changes(store, 0).await.removed.len(), 1);
}

/// The ids of everything that is there, by kind.
fn ids(all: &Catalogue, now: UtcTime) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let mut add = |kind: &str, id: String| ids.insert(format!("{kind} {id}"));
    let runner = |id| all.runners.iter().any(|runner| runner.id == id);
    let source = |id| all.sources.iter().any(|source| source.id == id);
    let gateway = |id| all.gateways.iter().any(|gateway| gateway.id == id);
    let organisation = |id| {
        all.organisations
            .iter()
            .any(|organisation| organisation.id == id)
    };
    for row in &all.organisations {
        add("organisation", format!("{} {}", row.id, row.name));
    }
    for row in &all.environments {
        add("environment", format!("{} {}", row.id, row.slug));
    }
    for row in &all.groups {
        add("group", row.id.to_string());
    }
    for row in &all.runners {
        add("runner", format!("{} {:?}", row.id, row.revoked_at));
    }
    for row in &all.sources {
        add("source", row.id.to_string());
    }
    for row in &all.lenses {
        add("lens", format!("{} {}", row.id, row.name));
    }
    // What follows goes along with its parents.
    for row in all.keys.iter().filter(|key| key.is_live(now)) {
        if organisation(row.organisation_id) && row.runner_id.is_none_or(runner) {
            add("key", row.id.to_string());
        }
    }
    for row in &all.assignments {
        if runner(row.runner_id) && source(row.source_id) {
            add("assignment", format!("{}/{}", row.runner_id, row.source_id));
        }
    }
    for row in &all.sessions {
        if runner(row.runner_id) && gateway(row.gateway_id) {
            add("session", format!("{} {}", row.id, row.state.as_str()));
        }
    }
    ids
}

/// Applies a delta, as a gateway does.
fn apply(all: &mut Catalogue, Changes { changed, removed }: Changes) {
    use TombstoneKind as Kind;
    fn replace<T, I: PartialEq>(all: &mut Vec<T>, new: Vec<T>, id: impl Fn(&T) -> I) {
        all.retain(|old| !new.iter().any(|new| id(new) == id(old)));
        all.extend(new);
    }
    for Tombstone { kind, id } in removed {
        match kind {
            Kind::Organisation => all.organisations.retain(|row| row.id.to_string() != id),
            Kind::Environment => all.environments.retain(|row| row.id.to_string() != id),
            Kind::Group => all.groups.retain(|row| row.id.to_string() != id),
            Kind::Runner => all.runners.retain(|row| row.id.to_string() != id),
            Kind::Source => all.sources.retain(|row| row.id.to_string() != id),
            Kind::Lens => all.lenses.retain(|row| row.id.to_string() != id),
            Kind::Session => all.sessions.retain(|row| row.id.to_string() != id),
            Kind::Assignment => all
                .assignments
                .retain(|row| format!("{}/{}", row.runner_id, row.source_id) != id),
        }
    }
    replace(&mut all.organisations, changed.organisations, |row| row.id);
    replace(&mut all.environments, changed.environments, |row| row.id);
    replace(&mut all.groups, changed.groups, |row| row.id);
    replace(&mut all.runners, changed.runners, |row| row.id);
    replace(&mut all.sources, changed.sources, |row| row.id);
    replace(&mut all.lenses, changed.lenses, |row| row.id);
    replace(&mut all.keys, changed.keys, |row| row.id);
    replace(&mut all.sessions, changed.sessions, |row| row.id);
    replace(&mut all.assignments, changed.assignments, |row| {
        (row.runner_id, row.source_id)
    });
    all.gateways = changed.gateways;
}

async fn deltas_come_to_the_same_as_everything(fixture: Fixture) {
    let store = &fixture.store;
    let (a, b) = (world(store, "a").await, world(store, "b").await);
    let (own, other) = (gateway(store).await, gateway(store).await);
    let mut kept = store.catalogue_load(at(0)).await.unwrap();
    let mut read_at = 0;
    let mut catch_up = async |now: u64, what: &str| {
        apply(&mut kept, changes(store, read_at).await);
        read_at = now;
        let all = store.catalogue_load(at(now)).await.unwrap();
        assert_eq!(ids(&kept, at(now)), ids(&all, at(now)), "{what}");
    };
    for world in [&a, &b] {
        let add = store.assignment_add(world.organisation, world.runner, world.source, at(1));
        add.await.unwrap();
    }
    let sessions = [a.session(own), b.session(other)];
    for session in &sessions {
        let open = Session {
            changed_at: at(2),
            ..session.clone()
        };
        store.session_open(open).await.unwrap();
    }
    catch_up(3, "sessions").await;
    store.gateway_declare_lost(own, 0, at(4)).await.unwrap();
    catch_up(5, "a lost gateway takes its sessions along").await;
    store
        .lens_delete(a.environment, a.lens, at(6))
        .await
        .unwrap();
    store
        .source_delete(a.environment, a.source, at(6))
        .await
        .unwrap();
    catch_up(7, "a source takes its assignments along").await;
    store
        .runner_delete(b.organisation, b.runner, at(8))
        .await
        .unwrap();
    catch_up(9, "a runner takes its keys, assignments and sessions along").await;
    store
        .runner_delete(a.organisation, a.runner, at(10))
        .await
        .unwrap();
    store
        .environment_delete(a.organisation, a.environment, at(10))
        .await
        .unwrap();
    store
        .organisation_delete(a.organisation, at(10))
        .await
        .unwrap();
    catch_up(11, "an organisation takes its keys along").await;
    store
        .key_revoke(b.organisation, b.key, at(12))
        .await
        .unwrap();
    catch_up(13, "a revoked key").await;
}
