//! New keys: the text that is shown once beside the row that is kept.

use crate::clock::UtcTime;
use crate::domain::tokens::Token;
use crate::ids::{EnvironmentId, KeyId, OrganisationId, RunnerId};
use crate::storage::{KeyKind, NewKey, Role};

/// A new key.
pub(crate) struct Minted {
    /// Its text, to be shown once.
    pub(crate) text: String,
    /// What is kept of it.
    pub(crate) row: NewKey,
}

/// What a key opens.
pub(crate) struct Opens {
    organisation: OrganisationId,
    environment: Option<EnvironmentId>,
    runner: Option<RunnerId>,
    role: Option<Role>,
}

impl Opens {
    /// An organisation's admin API.
    pub(crate) fn organisation(organisation: OrganisationId, role: Role) -> Self {
        Self {
            organisation,
            environment: None,
            runner: None,
            role: Some(role),
        }
    }

    /// An environment's lenses.
    pub(crate) fn environment(organisation: OrganisationId, environment: EnvironmentId) -> Self {
        Self {
            organisation,
            environment: Some(environment),
            runner: None,
            role: None,
        }
    }

    /// The socket, as one runner.
    pub(crate) fn runner(organisation: OrganisationId, runner: RunnerId) -> Self {
        Self {
            organisation,
            environment: None,
            runner: Some(runner),
            role: None,
        }
    }
}

impl Minted {
    /// Makes a key; `slug` is the organisation's or environment's, for people to tell keys apart.
    pub(crate) fn new(
        kind: KeyKind,
        slug: &str,
        opens: Opens,
        name: Option<String>,
        expires_at: Option<UtcTime>,
        now: UtcTime,
    ) -> Self {
        let token = Token::generate(kind.as_str(), slug);
        let row = NewKey {
            id: KeyId::new(),
            kind,
            organisation_id: opens.organisation,
            environment_id: opens.environment,
            runner_id: opens.runner,
            role: opens.role,
            name,
            hash: token.hash(),
            display: token.display(),
            created_at: now,
            expires_at,
            changed_at: now,
        };
        Self {
            text: token.into_text(),
            row,
        }
    }
}
