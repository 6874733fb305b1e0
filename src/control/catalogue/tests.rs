//! How changes are applied: to rows as they are read, and by a real store.

use std::sync::Arc;

use super::*;
use crate::control::testing::World;
use crate::storage::{Gateway, LensChange, NewLens, RunnerChange, SessionState};

/// A time before everything that a test writes.
fn beginning(world: &World) -> UtcTime {
    world.clock.now().minus(Duration::from_secs(3600))
}

/// What the store has changed since then, put into a catalogue.
async fn next(world: &World, catalogue: &Catalogue, since: UtcTime) -> Option<Catalogue> {
    catalogue.with(world.store.catalogue_changes(since).await.unwrap())
}

#[actix::test]
async fn a_pass_over_changes_leads_where_a_full_pass_does() {
    let world = World::new().await;
    let since = beginning(&world);
    let empty = Catalogue::default();
    let by_changes = next(&world, &empty, since).await.unwrap();
    let by_all = world.catalogue.current();
    for catalogue in [&by_changes, by_all.as_ref()] {
        assert_eq!(catalogue.runners_of(world.source), [world.runner]);
        assert_eq!(catalogue.sources_of(world.runner), [world.source]);
        let lens = catalogue.lens_named(world.environment.id, "things");
        assert_eq!(lens.unwrap().row.source_id, world.source);
        assert!(catalogue.token_is_live(world.key, world.clock.now()));
        assert_eq!(
            catalogue.gateways().collect::<Vec<_>>(),
            [(world.gateway, None)]
        );
    }
}

#[actix::test]
async fn what_was_read_before_is_no_change() {
    let world = World::new().await;
    let since = beginning(&world);
    let catalogue = world.catalogue.current();
    assert!(next(&world, &catalogue, since).await.is_none());
    // Renewals and last-seen times are none either.
    world
        .store
        .gateway_renew(world.gateway, world.clock.now())
        .await
        .unwrap();
    assert!(next(&world, &catalogue, since).await.is_none());
}

#[actix::test]
async fn each_kind_of_change_is_applied_and_removals_too() {
    let world = World::new().await;
    let since = beginning(&world);
    let (store, clock) = (&world.store, &world.clock);
    let (organisation, environment) = (world.organisation(), world.environment.id);

    let row = world.session_row(world.gateway);
    store.session_open(row.clone()).await.unwrap();
    let catalogue = next(&world, &world.catalogue.current(), since)
        .await
        .unwrap();
    let known = &catalogue.sessions_of(world.runner)[0];
    assert_eq!((known.id, known.gateway_id), (row.id, world.gateway));
    assert_eq!(known.bridges, ["sqlite", "postgres"]);

    store
        .session_mark(
            world.gateway,
            vec![(row.id, SessionState::Draining)],
            clock.now(),
        )
        .await
        .unwrap();
    let catalogue = next(&world, &catalogue, since).await.unwrap();
    assert_eq!(
        catalogue.sessions_of(world.runner)[0].state,
        SessionState::Draining
    );

    store
        .session_close(world.gateway, row.id, clock.now())
        .await
        .unwrap();
    let catalogue = next(&world, &catalogue, since).await.unwrap();
    assert_eq!(catalogue.sessions_of(world.runner), []);

    let change = RunnerChange {
        drained_at: Some(Some(clock.now())),
        ..RunnerChange::default()
    };
    store
        .runner_update(organisation, world.runner, change, clock.now())
        .await
        .unwrap();
    let catalogue = next(&world, &catalogue, since).await.unwrap();
    assert!(catalogue.runner(world.runner).unwrap().drained_at.is_some());

    store
        .assignment_remove(organisation, world.runner, world.source, clock.now())
        .await
        .unwrap();
    let catalogue = next(&world, &catalogue, since).await.unwrap();
    assert_eq!(catalogue.runners_of(world.source), []);
    store
        .assignment_add(organisation, world.runner, world.source, clock.now())
        .await
        .unwrap();
    let catalogue = next(&world, &catalogue, since).await.unwrap();
    assert_eq!(catalogue.runners_of(world.source), [world.runner]);

    store
        .key_revoke(organisation, world.key, clock.now())
        .await
        .unwrap();
    let catalogue = next(&world, &catalogue, since).await.unwrap();
    assert!(!catalogue.token_is_live(world.key, clock.now()));

    let lens = catalogue.lens_named(environment, "things").unwrap().row.id;
    store
        .lens_delete(environment, lens, clock.now())
        .await
        .unwrap();
    let catalogue = next(&world, &catalogue, since).await.unwrap();
    assert!(catalogue.lens_named(environment, "things").is_none());
}

#[actix::test]
async fn what_belongs_to_something_that_is_gone_is_not_found() {
    let world = World::new().await;
    let since = beginning(&world);
    let (store, clock) = (&world.store, &world.clock);
    let other = Gateway {
        id: GatewayId::new(),
        renewals: 0,
        internal_url: Some("http://peer".into()),
        started_at: clock.now(),
        seen_at: clock.now(),
    };
    store.gateway_register(other.clone()).await.unwrap();
    world.session_on(other.id).await;
    let catalogue = next(&world, &world.catalogue.current(), since)
        .await
        .unwrap();
    assert_eq!(catalogue.sessions().count(), 1);

    // The sessions of a gateway go with it, and nobody tells of each.
    store
        .gateway_declare_lost(other.id, 0, clock.now())
        .await
        .unwrap()
        .unwrap();
    let catalogue = next(&world, &catalogue, since).await.unwrap();
    assert_eq!(catalogue.sessions().count(), 0);

    // A runner takes its assignments and its keys along.
    store
        .runner_delete(world.organisation(), world.runner, clock.now())
        .await
        .unwrap();
    let catalogue = next(&world, &catalogue, since).await.unwrap();
    assert_eq!(catalogue.runners_of(world.source), []);
    assert!(!catalogue.token_is_live(world.key, clock.now()));
    assert!(catalogue.key_by_hash(&[0; 32]).is_none());
}

#[actix::test]
async fn a_lens_is_read_again_only_if_it_has_changed() {
    let world = World::new().await;
    let since = beginning(&world);
    let environment = world.environment.id;
    let before = world.catalogue.current();
    let new = NewLens {
        id: LensId::new(),
        name: "others".into(),
        source_id: world.source,
        target: "t".into(),
        primary_key: json!("id"),
        fields: json!({"id": {"type": "number"}}),
        grants: json!({}),
        relations: json!({}),
        on_runner_failure: "fail".into(),
    };
    world
        .store
        .lens_create(environment, new, world.clock.now())
        .await
        .unwrap();
    let after = next(&world, &before, since).await.unwrap();
    let of =
        |catalogue: &Catalogue, name| catalogue.lens_named(environment, name).cloned().unwrap();
    assert!(Arc::ptr_eq(&of(&before, "things"), &of(&after, "things")));
    let all = world.store.catalogue_load(world.clock.now()).await.unwrap();
    assert!(Arc::ptr_eq(
        &of(&after, "others"),
        &of(&after.renewed(all), "others")
    ));

    let change = LensChange {
        target: Some("other_table".into()),
        ..LensChange::default()
    };
    let id = of(&after, "others").row.id;
    world
        .store
        .lens_update(environment, id, change, world.clock.now())
        .await
        .unwrap();
    let changed = next(&world, &after, since).await.unwrap();
    assert_eq!(of(&changed, "others").row.target, "other_table");
    assert!(Arc::ptr_eq(&of(&after, "things"), &of(&changed, "things")));
}
