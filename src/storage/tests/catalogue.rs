//! The catalogue: all of it, of one moment.

use tokio::sync::{mpsc, oneshot};

use super::*;

contract!(
    the_catalogue_holds_everything_that_is_live,
    a_snapshot_sees_one_moment
);

async fn the_catalogue_holds_everything_that_is_live(fixture: Fixture) {
    let (a, store) = (world(&fixture.store, "a").await, &fixture.store);
    let b = world(store, "b").await;
    store
        .assignment_add(a.organisation, a.runner, a.source, at(1))
        .await
        .unwrap();
    let expiring = NewKey {
        expires_at: Some(at(10)),
        ..key_of(a.organisation, KeyKind::Admin, "expiring")
    };
    store.key_create(expiring).await.unwrap();
    let catalogue = store.catalogue_load(at(9)).await.unwrap();
    assert_eq!(catalogue.organisations.len(), 2);
    assert_eq!(catalogue.environments.len(), 2);
    assert_eq!(catalogue.keys.len(), 5);
    assert_eq!(
        catalogue.assignments,
        store
            .assignment_list(a.organisation, a.runner)
            .await
            .unwrap()
    );
    assert!(
        catalogue
            .runners
            .contains(&store.runner_get(b.organisation, b.runner).await.unwrap())
    );
    assert!(
        catalogue
            .sources
            .contains(&store.source_get(b.environment, b.source).await.unwrap())
    );
    assert!(
        catalogue
            .lenses
            .contains(&store.lens_get(b.environment, b.lens).await.unwrap())
    );
    let later = store.catalogue_load(at(10)).await.unwrap();
    assert_eq!(later.keys.len(), 4);
    assert!(catalogue.keys.iter().all(|key| key.is_live(at(9))));
}

async fn a_snapshot_sees_one_moment(fixture: Fixture) {
    use diesel::QueryDsl as _;
    use schema::organisations;
    let (store, other) = (fixture.store.clone(), fixture.second().await);
    world(&store, "a").await;
    let (read, mut was_read) = mpsc::channel(1);
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let reader = tokio::spawn(async move {
        unit!(store, Snapshot, connection => {
            let before: i64 = organisations::table.count().get_result(connection).await?;
            read.send(()).await.unwrap();
            may_go_on.await.unwrap();
            let after: i64 = organisations::table.count().get_result(connection).await?;
            Ok((before, after))
        })
    });
    was_read.recv().await.unwrap();
    world(&other, "b").await;
    go_on.send(()).unwrap();
    assert_eq!(reader.await.unwrap().unwrap(), (1, 1));
}
