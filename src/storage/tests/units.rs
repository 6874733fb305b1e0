//! Units of work: whole or not at all, whoever waits for them and however they end.

use std::sync::Arc;

use diesel::ExpressionMethods as _;
use tokio::sync::{Notify, mpsc};

use super::*;

contract!(
    a_unit_whose_caller_went_away_happens_whole,
    a_unit_whose_caller_went_away_and_that_fails_leaves_nothing,
    a_panic_inside_a_unit_leaves_nothing_and_does_not_wedge_the_store,
    a_failed_unit_leaves_nothing,
    migrations_go_up_and_down_and_up,
    migrating_twice_changes_nothing,
    bootstrap_fills_an_empty_store_once,
    times_and_documents_come_back_as_they_were,
    a_store_that_is_called_from_a_current_thread_runtime_works,
);

fn organisation(slug: &str) -> Organisation {
    Organisation {
        id: OrganisationId::new(),
        slug: slug.into(),
        name: slug.into(),
        created_at: at(0),
    }
}

async fn slugs(store: &Store) -> Vec<String> {
    let all = store.organisation_list(Page::first(100)).await.unwrap();
    all.into_iter()
        .map(|organisation| organisation.slug)
        .collect()
}

/// Begins a unit, drops whoever waits for it in the middle, and lets it end; returns when it has.
async fn drop_half_way(store: &Store, end: fn() -> Result<(), StoreError>) {
    let (go_on, row) = (Arc::new(Notify::new()), organisation("half"));
    let (written, mut was_written) = mpsc::channel::<()>(1);
    let (its_store, its_turn) = (store.clone(), go_on.clone());
    let caller = tokio::spawn(async move {
        unit!(its_store, Transaction, connection => {
            diesel::insert_into(schema::organisations::table).values((&row, schema::organisations::changed_at.eq(at(0)))).execute(connection).await?;
            written.send(()).await.unwrap();
            its_turn.notified().await;
            end()
        })
    });
    was_written.recv().await.unwrap();
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    go_on.notify_one();
    // The sender goes when the body has ended; the commit is what the next unit waits for on SQLite, and on
    // PostgreSQL what the other insert of the same slug does.
    assert!(was_written.recv().await.is_none());
}

async fn a_unit_whose_caller_went_away_happens_whole(fixture: Fixture) {
    drop_half_way(&fixture.store, || Ok(())).await;
    // Waits for the other's commit, and then finds the slug taken.
    let again = fixture
        .store
        .organisation_create(organisation("half"))
        .await;
    assert!(matches!(again, Err(StoreError::Conflict(_))), "{again:?}");
    assert_eq!(slugs(&fixture.store).await, ["half"]);
}

async fn a_unit_whose_caller_went_away_and_that_fails_leaves_nothing(fixture: Fixture) {
    drop_half_way(&fixture.store, || Err(StoreError::Conflict("no"))).await;
    fixture
        .store
        .organisation_create(organisation("half"))
        .await
        .unwrap();
}

async fn a_panic_inside_a_unit_leaves_nothing_and_does_not_wedge_the_store(fixture: Fixture) {
    // More often than there are connections.
    for n in 0..20 {
        let row = organisation("panic");
        let ended: Result<(), StoreError> = unit!(fixture.store, Transaction, connection => {
            diesel::insert_into(schema::organisations::table).values((&row, schema::organisations::changed_at.eq(at(0)))).execute(connection).await?;
            assert!(n > 100, "on purpose");
            Ok(())
        });
        assert!(matches!(ended, Err(StoreError::Internal(_))), "{ended:?}");
    }
    assert!(slugs(&fixture.store).await.is_empty());
    fixture
        .store
        .organisation_create(organisation("panic"))
        .await
        .unwrap();
}

async fn a_failed_unit_leaves_nothing(fixture: Fixture) {
    let taken = organisation("taken");
    fixture
        .store
        .organisation_create(taken.clone())
        .await
        .unwrap();
    let first = organisation("first");
    let failed = unit!(fixture.store, Transaction, connection => {
        diesel::insert_into(schema::organisations::table).values((&first, schema::organisations::changed_at.eq(at(0)))).execute(connection).await?;
        diesel::insert_into(schema::organisations::table).values((&taken, schema::organisations::changed_at.eq(at(0)))).execute(connection).await?;
        Ok(())
    });
    assert!(matches!(failed, Err(StoreError::Conflict(_))), "{failed:?}");
    assert_eq!(slugs(&fixture.store).await, ["taken"]);
}

async fn migrations_go_up_and_down_and_up(fixture: Fixture) {
    world(&fixture.store, "acme").await;
    fixture.store.revert_migrations().await.unwrap();
    assert!(
        fixture
            .store
            .organisation_list(Page::first(1))
            .await
            .is_err()
    );
    fixture.store.migrate().await.unwrap();
    assert!(slugs(&fixture.store).await.is_empty());
    world(&fixture.store, "acme").await;
}

async fn migrating_twice_changes_nothing(fixture: Fixture) {
    world(&fixture.store, "acme").await;
    fixture.store.migrate().await.unwrap();
    assert_eq!(slugs(&fixture.store).await, ["acme"]);
}

async fn bootstrap_fills_an_empty_store_once(fixture: Fixture) {
    fixture.store.bootstrap(at(0)).await.unwrap();
    fixture.store.bootstrap(at(1)).await.unwrap();
    assert_eq!(slugs(&fixture.store).await, ["default"]);
    let organisation = fixture
        .store
        .organisation_list(Page::first(1))
        .await
        .unwrap()
        .remove(0);
    let environments = fixture
        .store
        .environment_list(organisation.id, Page::first(10))
        .await
        .unwrap();
    assert_eq!(
        environments
            .into_iter()
            .map(|environment| environment.slug)
            .collect::<Vec<_>>(),
        ["development"]
    );
    fixture
        .store
        .organisation_rename(organisation.id, "Renamed".into(), at(1))
        .await
        .unwrap();
    fixture.store.bootstrap(at(2)).await.unwrap();
    assert_eq!(slugs(&fixture.store).await.len(), 1);
}

async fn times_and_documents_come_back_as_they_were(fixture: Fixture) {
    let acme = world(&fixture.store, "acme").await;
    for micros in [0, 1, 500_000, 999_999] {
        let time = UtcTime::new(DateTime::from_timestamp(1_790_000_000, micros * 1000).unwrap());
        let name = format!("t{micros}");
        let source = fixture
            .store
            .source_create(acme.environment, new_source(&name), time)
            .await
            .unwrap();
        let read = fixture
            .store
            .source_get(acme.environment, source.id)
            .await
            .unwrap();
        assert_eq!((read.created_at, &read), (time, &source));
    }
    let document =
        json!({"z": 1, "a": ["ü", "🦀", "quote ' \" \\", null, 1.5, {"deep": true}], "m": {}});
    let lens = NewLens {
        fields: document.clone(),
        ..new_lens("document", acme.source)
    };
    let lens = fixture
        .store
        .lens_create(acme.environment, lens, at(0))
        .await
        .unwrap();
    let read = fixture
        .store
        .lens_get(acme.environment, lens.id)
        .await
        .unwrap();
    assert_eq!(
        read.fields.to_string(),
        document.to_string(),
        "the order of keys is kept too"
    );
}

async fn a_store_that_is_called_from_a_current_thread_runtime_works(fixture: Fixture) {
    let store = fixture.store.clone();
    let worker = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            store.migrate().await.unwrap();
            world(&store, "acme").await;
        });
    });
    tokio::task::spawn_blocking(move || worker.join().unwrap())
        .await
        .unwrap();
    assert_eq!(slugs(&fixture.store).await, ["acme"]);
}

#[test]
fn a_url_that_is_no_store_is_refused_with_a_reason() {
    let runtime = Runtime::new().unwrap();
    let cases = [
        "mysql://x/y",
        "sqlite://",
        "postgres://127.0.0.1:1/x",
        "postgres://127.0.0.1/x?sslmode=odd",
        "x",
    ];
    for url in cases {
        let opened = runtime.block_on(Store::open(url, runtime.handle()));
        let error = opened.map(|_| ()).unwrap_err();
        assert!(
            matches!(error, StoreError::Unavailable(_)),
            "{url}: {error:?}"
        );
        assert!(
            !std::error::Error::source(&error)
                .unwrap()
                .to_string()
                .is_empty()
        );
    }
}
