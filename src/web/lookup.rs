//! From what a path says to the thing that it means: an id, or a unique name where an id is expected. Says
//! what it is that was not found; whether it belongs to the tenant is checked by the store.

use crate::control::Catalogue;
use crate::domain::names;
use crate::ids::{EnvironmentId, LensId, OrganisationId, RunnerId, SourceId};
use crate::storage::StoreError;

use super::error::{ApiError, ApiResult};

/// The runner of that id or name.
pub(super) fn runner(
    catalogue: &Catalogue,
    organisation: OrganisationId,
    reference: &str,
) -> ApiResult<RunnerId> {
    by_id_or(
        reference,
        || {
            catalogue
                .runner_named(organisation, reference)
                .map(|runner| runner.id)
        },
        "runner",
    )
}

/// The source of that id or name.
pub(super) fn source(
    catalogue: &Catalogue,
    environment: EnvironmentId,
    reference: &str,
) -> ApiResult<SourceId> {
    by_id_or(
        reference,
        || {
            catalogue
                .source_named(environment, reference)
                .map(|source| source.id)
        },
        "source",
    )
}

/// The lens of that id or name.
pub(super) fn lens(
    catalogue: &Catalogue,
    environment: EnvironmentId,
    reference: &str,
) -> ApiResult<LensId> {
    by_id_or(
        reference,
        || {
            catalogue
                .lens_named(environment, reference)
                .map(|lens| lens.row.id)
        },
        "lens",
    )
}

fn by_id_or<I: std::str::FromStr>(
    reference: &str,
    named: impl FnOnce() -> Option<I>,
    kind: &str,
) -> ApiResult<I> {
    match reference.parse() {
        Ok(id) => Ok(id),
        Err(_) => named().ok_or_else(|| ApiError::not_found(kind, reference)),
    }
}

/// Says what it was that the store did not find.
pub(super) trait Missing<T> {
    /// Turns "not found" into a sentence about this thing.
    fn missing(self, kind: &str, reference: &str) -> ApiResult<T>;
}

impl<T> Missing<T> for Result<T, StoreError> {
    fn missing(self, kind: &str, reference: &str) -> ApiResult<T> {
        self.map_err(|error| match error {
            StoreError::NotFound => ApiError::not_found(kind, reference),
            other => other.into(),
        })
    }
}

/// Refuses a name that could not stand where an id can.
pub(super) fn check_name(path: &str, name: &str) -> ApiResult<()> {
    names::check_name(name).map_err(|error| ApiError::invalid(path, format!("`{path}`: {error}")))
}

/// Refuses a slug that could not stand in a key.
pub(super) fn check_slug(path: &str, slug: &str) -> ApiResult<()> {
    names::check_slug(slug).map_err(|error| ApiError::invalid(path, format!("`{path}`: {error}")))
}
