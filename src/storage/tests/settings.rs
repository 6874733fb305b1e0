//! What all gateways of a store agree on.

use super::*;

contract!(a_gateway_with_another_master_key_is_told_so);

async fn a_gateway_with_another_master_key_is_told_so(fixture: Fixture) {
    let store = &fixture.store;
    let check = async |current: &str, previous: Option<&str>| {
        store
            .master_key_check(current.to_owned(), previous.map(str::to_owned))
            .await
            .unwrap()
    };
    assert_eq!(check("one", None).await, MasterKeyCheck::Agreed);
    assert_eq!(check("one", Some("zero")).await, MasterKeyCheck::Agreed);
    let other = MasterKeyCheck::Other("one".into());
    assert_eq!(check("two", None).await, other);
    assert_eq!(check("two", Some("three")).await, other);
    assert_eq!(check("two", Some("one")).await, MasterKeyCheck::Agreed);
    assert_eq!(
        check("one", None).await,
        MasterKeyCheck::Other("two".into())
    );
}
