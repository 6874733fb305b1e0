//! One test per database from one function that takes the engine.

macro_rules! on_every_database {
    ($($(#[$attribute:meta])* $property:ident),+ $(,)?) => {
        mod postgres {
            $($(#[$attribute])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $property() { super::$property(crate::support::Engine::Postgres).await })+
        }
        mod mariadb {
            $($(#[$attribute])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $property() { super::$property(crate::support::Engine::Mysql).await })+
        }
        mod sqlite {
            $($(#[$attribute])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $property() { super::$property(crate::support::Engine::Sqlite).await })+
        }
    };
}
