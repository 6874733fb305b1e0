//! Resources and whose they are: nothing of one tenant can be seen or changed by naming another.

use super::*;

contract!(
    nothing_of_another_organisation_is_visible,
    nothing_of_another_organisation_can_be_changed,
    nothing_of_another_tenant_can_be_referred_to,
    names_are_unique_in_their_tenant_only,
    what_something_refers_to_is_not_deleted,
    deleting_a_runner_takes_its_keys_assignments_and_sessions,
    a_change_leaves_what_it_does_not_name,
    a_key_is_revoked_once,
    assignments_are_replaced_added_and_removed,
    lists_page_by_id,
    a_rotation_ends_the_old_keys_at_once_or_later,
    a_revoked_runner_has_no_key_left_and_gets_none,
);

/// Asserts that there is no such thing.
macro_rules! assert_absent {
    ($($call:expr),+ $(,)?) => {$(
        let answer = $call.await;
        assert!(matches!(answer, Err(StoreError::NotFound)), "{}: {answer:?}", stringify!($call));
    )+};
}

async fn nothing_of_another_organisation_is_visible(fixture: Fixture) {
    let (a, b, store) = (
        world(&fixture.store, "a").await,
        world(&fixture.store, "b").await,
        &fixture.store,
    );
    let own = gateway(store).await;
    store.session_open(a.session(own)).await.unwrap();
    store
        .assignment_add(a.organisation, a.runner, a.source, at(1))
        .await
        .unwrap();
    let job = a.job();
    store
        .job_claim_sync(vec![a.claim(own, &job)], at(1))
        .await
        .unwrap();
    assert_absent!(
        store.environment_get(b.organisation, a.environment),
        store.runner_get(b.organisation, a.runner),
        store.key_get(b.organisation, a.key),
        store.source_get(b.environment, a.source),
        store.lens_get(b.environment, a.lens),
        store.job_get(b.organisation, job.id),
    );
    assert!(
        store
            .session_list(b.organisation, a.runner)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        store
            .assignment_list(b.organisation, a.runner)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        store
            .job_list(b.organisation, JobFilter::default(), Page::first(10))
            .await
            .unwrap()
            .is_empty()
    );
    let theirs = JobFilter {
        environment: Some(a.environment),
        ..JobFilter::default()
    };
    assert!(
        store
            .job_list(b.organisation, theirs, Page::first(10))
            .await
            .unwrap()
            .is_empty()
    );
    let runners = store
        .runner_list(b.organisation, Page::first(10))
        .await
        .unwrap();
    assert_eq!(
        runners.iter().map(|runner| runner.id).collect::<Vec<_>>(),
        [b.runner]
    );
    let keys = store
        .key_list(b.organisation, Page::first(10))
        .await
        .unwrap();
    assert_eq!(keys.iter().map(|key| key.id).collect::<Vec<_>>(), [b.key]);
}

async fn nothing_of_another_organisation_can_be_changed(fixture: Fixture) {
    let (a, b, store) = (
        world(&fixture.store, "a").await,
        world(&fixture.store, "b").await,
        &fixture.store,
    );
    store
        .assignment_add(a.organisation, a.runner, a.source, at(1))
        .await
        .unwrap();
    let before = store.catalogue_load(at(1)).await.unwrap();
    let rotation = Rotation {
        key: key_of(b.organisation, KeyKind::Runner, "rotated"),
        old_keys_expire_at: None,
    };
    let lens = LensChange {
        name: Some("stolen".into()),
        ..LensChange::default()
    };
    let source = SourceChange {
        name: Some("stolen".into()),
        ..SourceChange::default()
    };
    let runner = RunnerChange {
        name: Some("stolen".into()),
        ..RunnerChange::default()
    };
    assert_absent!(
        store.environment_rename(b.organisation, a.environment, "stolen".into(), at(1)),
        store.environment_delete(b.organisation, a.environment, at(1)),
        store.runner_update(b.organisation, a.runner, runner, at(2)),
        store.runner_delete(b.organisation, a.runner, at(1)),
        store.source_update(b.environment, a.source, source, at(2)),
        store.source_delete(b.environment, a.source, at(1)),
        store.lens_update(b.environment, a.lens, lens, at(2)),
        store.lens_delete(b.environment, a.lens, at(1)),
        store.assignment_replace(b.organisation, a.runner, vec![], at(2)),
        store.assignment_add(b.organisation, a.runner, b.source, at(2)),
        store.assignment_remove(b.organisation, a.runner, a.source, at(2)),
    );
    assert_eq!(
        store
            .runner_revoke(b.organisation, a.runner, at(2))
            .await
            .unwrap(),
        Changed::Absent
    );
    assert_eq!(
        store
            .runner_rotate(b.organisation, a.runner, rotation, at(2))
            .await
            .unwrap(),
        Changed::Absent
    );
    assert_eq!(
        store
            .key_revoke(b.organisation, a.key, at(2))
            .await
            .unwrap(),
        Changed::Absent
    );
    assert_eq!(store.catalogue_load(at(1)).await.unwrap(), before);
}

async fn nothing_of_another_tenant_can_be_referred_to(fixture: Fixture) {
    let (a, b, store) = (
        world(&fixture.store, "a").await,
        world(&fixture.store, "b").await,
        &fixture.store,
    );
    let group = NewRunnerGroup {
        id: GroupId::new(),
        name: "g".into(),
        dispatch: GroupDispatch::All,
    };
    let group = store
        .group_create(a.organisation, group, at(0))
        .await
        .unwrap()
        .id;
    let grouped = RunnerChange {
        group_id: Some(Some(group)),
        ..RunnerChange::default()
    };
    let moved = LensChange {
        source_id: Some(a.source),
        ..LensChange::default()
    };
    let key = NewKey {
        environment_id: Some(a.environment),
        ..key_of(b.organisation, KeyKind::Secret, "sk")
    };
    let in_group = NewRunner {
        group_id: Some(group),
        ..new_runner("grouped")
    };
    assert_absent!(
        store.runner_update(b.organisation, b.runner, grouped, at(1)),
        store.runner_create(
            b.organisation,
            in_group,
            key_of(b.organisation, KeyKind::Runner, "k"),
            at(1)
        ),
        store.lens_create(b.environment, new_lens("theirs", a.source), at(1)),
        store.lens_update(b.environment, b.lens, moved, at(1)),
        store.key_create(key),
        store.assignment_add(b.organisation, b.runner, a.source, at(1)),
        store.assignment_replace(b.organisation, b.runner, vec![b.source, a.source], at(1)),
    );
    assert!(
        store
            .assignment_list(b.organisation, b.runner)
            .await
            .unwrap()
            .is_empty()
    );
}

async fn names_are_unique_in_their_tenant_only(fixture: Fixture) {
    // Both worlds use the same names.
    let (a, store) = (world(&fixture.store, "a").await, &fixture.store);
    world(store, "b").await;
    let key = |text: &str| key_of(a.organisation, KeyKind::Runner, text);
    let second = store
        .runner_create(a.organisation, new_runner("two"), key("two"), at(0))
        .await
        .unwrap();
    let renamed = RunnerChange {
        name: Some("one".into()),
        ..RunnerChange::default()
    };
    let environment = Environment {
        id: EnvironmentId::new(),
        organisation_id: a.organisation,
        slug: "development".into(),
        created_at: at(0),
    };
    let organisation = Organisation {
        id: OrganisationId::new(),
        slug: "a".into(),
        name: "A".into(),
        created_at: at(0),
    };
    let answers = [
        store
            .runner_create(a.organisation, new_runner("one"), key("three"), at(0))
            .await
            .map(|_| ()),
        store
            .runner_create(a.organisation, new_runner("four"), key("two"), at(0))
            .await
            .map(|_| ()),
        store
            .runner_update(a.organisation, second.id, renamed, at(0))
            .await
            .map(|_| ()),
        store
            .source_create(a.environment, new_source("main"), at(0))
            .await
            .map(|_| ()),
        store
            .lens_create(a.environment, new_lens("people", a.source), at(0))
            .await
            .map(|_| ()),
        store.environment_create(environment).await.map(|_| ()),
        store.organisation_create(organisation).await.map(|_| ()),
    ];
    for answer in answers {
        let Err(StoreError::Conflict(what)) = answer else {
            panic!("{answer:?}")
        };
        assert!(what.ends_with("exists already"), "{what}");
    }
    assert!(matches!(
        store
            .runner_list(a.organisation, Page::first(10))
            .await
            .unwrap()
            .as_slice(),
        [_, _]
    ));
}

async fn what_something_refers_to_is_not_deleted(fixture: Fixture) {
    let (a, store) = (world(&fixture.store, "a").await, &fixture.store);
    let answers = [
        store.source_delete(a.environment, a.source, at(1)).await,
        store
            .environment_delete(a.organisation, a.environment, at(1))
            .await,
        store.organisation_delete(a.organisation, at(1)).await,
    ];
    for answer in answers {
        assert!(matches!(answer, Err(StoreError::Conflict(_))), "{answer:?}");
    }
    store
        .lens_delete(a.environment, a.lens, at(1))
        .await
        .unwrap();
    store
        .assignment_add(a.organisation, a.runner, a.source, at(1))
        .await
        .unwrap();
    store
        .source_delete(a.environment, a.source, at(1))
        .await
        .unwrap();
    assert!(
        store
            .assignment_list(a.organisation, a.runner)
            .await
            .unwrap()
            .is_empty()
    );
    store
        .environment_delete(a.organisation, a.environment, at(1))
        .await
        .unwrap();
    store
        .runner_delete(a.organisation, a.runner, at(1))
        .await
        .unwrap();
    store
        .organisation_delete(a.organisation, at(1))
        .await
        .unwrap();
    assert_absent!(
        store.organisation_delete(a.organisation, at(1)),
        store.organisation_get(a.organisation)
    );
    assert_absent!(store.organisation_rename(a.organisation, "gone".into(), at(1)));
    assert_eq!(
        store.catalogue_load(at(1)).await.unwrap(),
        Catalogue::default()
    );
}

async fn deleting_a_runner_takes_its_keys_assignments_and_sessions(fixture: Fixture) {
    let (a, store) = (world(&fixture.store, "a").await, &fixture.store);
    let own = gateway(store).await;
    store.session_open(a.session(own)).await.unwrap();
    store
        .assignment_add(a.organisation, a.runner, a.source, at(1))
        .await
        .unwrap();
    let job = a.job();
    store
        .job_claim_sync(vec![a.claim(own, &job)], at(1))
        .await
        .unwrap();
    store
        .runner_delete(a.organisation, a.runner, at(1))
        .await
        .unwrap();
    assert!(store.session_list_all().await.unwrap().is_empty());
    let catalogue = store.catalogue_load(at(1)).await.unwrap();
    assert!(catalogue.runners.is_empty() && catalogue.assignments.is_empty());
    assert!(catalogue.keys.iter().all(|key| key.kind == KeyKind::Admin));
    assert_eq!(
        store
            .job_get(a.organisation, job.id)
            .await
            .unwrap()
            .runner_id,
        Some(a.runner)
    );
    assert_absent!(store.runner_delete(a.organisation, a.runner, at(1)));
    assert_absent!(store.runner_key_by_hash("a-runner"));
}

async fn a_change_leaves_what_it_does_not_name(fixture: Fixture) {
    let (a, store) = (world(&fixture.store, "a").await, &fixture.store);
    let before = store.runner_get(a.organisation, a.runner).await.unwrap();
    let change = RunnerChange {
        tainted_at: Some(Some(at(1))),
        ..RunnerChange::default()
    };
    let tainted = store
        .runner_update(a.organisation, a.runner, change, at(1))
        .await
        .unwrap();
    assert_eq!(
        tainted,
        Runner {
            tainted_at: Some(at(1)),
            changed_at: at(1),
            ..before.clone()
        }
    );
    let change = RunnerChange {
        tainted_at: Some(None),
        name: Some("new".into()),
        ..RunnerChange::default()
    };
    let untainted = store
        .runner_update(a.organisation, a.runner, change, at(2))
        .await
        .unwrap();
    assert_eq!(
        untainted,
        Runner {
            name: "new".into(),
            changed_at: at(2),
            ..before
        }
    );

    let before = store.source_get(a.environment, a.source).await.unwrap();
    let change = SourceChange {
        timeout_ms: Some(Some(500)),
        config_sealed: Some(None),
        ..SourceChange::default()
    };
    let changed = store
        .source_update(a.environment, a.source, change, at(1))
        .await
        .unwrap();
    assert_eq!(
        changed,
        Source {
            timeout_ms: Some(500),
            config_sealed: None,
            changed_at: at(1),
            ..before
        }
    );

    let before = store.lens_get(a.environment, a.lens).await.unwrap();
    let change = LensChange {
        grants: Some(json!([{"allow": true}])),
        ..LensChange::default()
    };
    let changed = store
        .lens_update(a.environment, a.lens, change, at(1))
        .await
        .unwrap();
    assert_eq!(
        changed,
        Lens {
            grants: json!([{"allow": true}]),
            changed_at: at(1),
            ..before
        }
    );
}

async fn a_key_is_revoked_once(fixture: Fixture) {
    let (a, store) = (world(&fixture.store, "a").await, &fixture.store);
    let Changed::Done(revoked) = store
        .key_revoke(a.organisation, a.key, at(1))
        .await
        .unwrap()
    else {
        panic!("the key was live")
    };
    assert_eq!(revoked.revoked_at, Some(at(1)));
    assert_eq!(
        store
            .key_revoke(a.organisation, a.key, at(2))
            .await
            .unwrap(),
        Changed::OtherState(revoked)
    );
    assert_eq!(
        store
            .key_revoke(a.organisation, KeyId::new(), at(2))
            .await
            .unwrap(),
        Changed::Absent
    );
    assert!(
        store
            .catalogue_load(at(1))
            .await
            .unwrap()
            .keys
            .iter()
            .all(|key| key.id != a.key)
    );
}

async fn assignments_are_replaced_added_and_removed(fixture: Fixture) {
    let (a, store) = (world(&fixture.store, "a").await, &fixture.store);
    let mut sources = vec![a.source];
    for name in ["two", "three"] {
        sources.push(
            store
                .source_create(a.environment, new_source(name), at(0))
                .await
                .unwrap()
                .id,
        );
    }
    let assigned = || async {
        let list = store
            .assignment_list(a.organisation, a.runner)
            .await
            .unwrap();
        list.into_iter()
            .map(|assignment| assignment.source_id)
            .collect::<Vec<_>>()
    };
    assert!(
        store
            .assignment_add(a.organisation, a.runner, sources[0], at(1))
            .await
            .unwrap()
    );
    assert!(
        !store
            .assignment_add(a.organisation, a.runner, sources[0], at(2))
            .await
            .unwrap()
    );
    let wanted = vec![sources[1], sources[0], sources[1]];
    let now = store
        .assignment_replace(a.organisation, a.runner, wanted, at(3))
        .await
        .unwrap();
    assert_eq!(
        now.iter()
            .map(|x| (x.source_id, x.created_at))
            .collect::<Vec<_>>(),
        [(sources[0], at(1)), (sources[1], at(3))]
    );
    store
        .assignment_replace(a.organisation, a.runner, vec![sources[2]], at(4))
        .await
        .unwrap();
    assert_eq!(assigned().await, [sources[2]]);
    store
        .assignment_remove(a.organisation, a.runner, sources[2], at(5))
        .await
        .unwrap();
    assert_absent!(store.assignment_remove(a.organisation, a.runner, sources[2], at(5)));
    assert!(assigned().await.is_empty());
    assert_eq!(
        store
            .runner_get(a.organisation, a.runner)
            .await
            .unwrap()
            .changed_at,
        at(5)
    );
    assert!(
        store
            .assignment_replace(a.organisation, a.runner, vec![], at(6))
            .await
            .unwrap()
            .is_empty()
    );
}

async fn lists_page_by_id(fixture: Fixture) {
    let (a, store) = (world(&fixture.store, "a").await, &fixture.store);
    for name in ["two", "three", "four"] {
        store
            .source_create(a.environment, new_source(name), at(0))
            .await
            .unwrap();
    }
    let mut names = Vec::new();
    let mut page = Page::first(3);
    loop {
        let found = store.source_list(a.environment, page).await.unwrap();
        let Some(last) = found.last() else { break };
        page.after = Some(last.id);
        names.push(
            found
                .into_iter()
                .map(|source| source.name)
                .collect::<Vec<_>>(),
        );
    }
    assert_eq!(names, [vec!["main", "two", "three"], vec!["four"]]);
}

async fn a_rotation_ends_the_old_keys_at_once_or_later(fixture: Fixture) {
    let (a, store) = (world(&fixture.store, "a").await, &fixture.store);
    let rotation = |text: &str, old_keys_expire_at| Rotation {
        key: key_of(a.organisation, KeyKind::Runner, text),
        old_keys_expire_at,
    };
    let works = async |hash: &str, now| {
        let key = store.runner_key_by_hash(hash).await.unwrap();
        assert_eq!(key.runner_id, Some(a.runner));
        key.is_live(now)
    };
    let graceful = store
        .runner_rotate(
            a.organisation,
            a.runner,
            rotation("second", Some(at(60))),
            at(10),
        )
        .await
        .unwrap();
    assert!(matches!(graceful, Changed::Done(_)));
    assert!(works("a-runner", at(59)).await && works("second", at(59)).await);
    assert!(!works("a-runner", at(60)).await && works("second", at(60)).await);
    // A longer grace does not bring the first one back to life.
    store
        .runner_rotate(
            a.organisation,
            a.runner,
            rotation("third", Some(at(90))),
            at(20),
        )
        .await
        .unwrap();
    assert!(
        !works("a-runner", at(60)).await
            && works("second", at(89)).await
            && !works("second", at(90)).await
    );
    store
        .runner_rotate(a.organisation, a.runner, rotation("fourth", None), at(30))
        .await
        .unwrap();
    assert!(
        !works("second", at(31)).await
            && !works("third", at(31)).await
            && works("fourth", at(31)).await
    );
    assert_absent!(store.runner_key_by_hash("a-admin"));
}

async fn a_revoked_runner_has_no_key_left_and_gets_none(fixture: Fixture) {
    let (a, store) = (world(&fixture.store, "a").await, &fixture.store);
    let Changed::Done(revoked) = store
        .runner_revoke(a.organisation, a.runner, at(1))
        .await
        .unwrap()
    else {
        panic!("the runner was not revoked")
    };
    assert_eq!(revoked.revoked_at, Some(at(1)));
    let key = store.runner_key_by_hash("a-runner").await.unwrap();
    assert!(
        !key.is_live(at(0)),
        "what was revoked is not live at any time"
    );
    let again = store
        .runner_revoke(a.organisation, a.runner, at(2))
        .await
        .unwrap();
    assert_eq!(again, Changed::OtherState(revoked.clone()));
    let rotation = Rotation {
        key: key_of(a.organisation, KeyKind::Runner, "new"),
        old_keys_expire_at: None,
    };
    let refused = store
        .runner_rotate(a.organisation, a.runner, rotation, at(2))
        .await
        .unwrap();
    assert_eq!(refused, Changed::OtherState(revoked));
    assert_absent!(store.runner_key_by_hash("new"));
}
