//! Requests to the API server and their errors.

use std::time::Duration;

use kube::Error;
use kube::api::{DeleteParams, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use tokio::time::timeout;

use crate::cluster::MANAGER;
use crate::registry::{RegistryError, UpdateError};

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a run of a change failed.
pub enum WriteError {
    /// An object changed since it was read.
    Conflict,
    /// The API server has allocated this port to somebody else.
    Taken(u16),
    Failed(UpdateError),
}

impl From<Error> for WriteError {
    fn from(error: Error) -> Self {
        let stale = |status: &Status| {
            status.is_conflict() || status.is_not_found() || status.is_already_exists()
        };
        match &error {
            Error::Api(status) if stale(status) => WriteError::Conflict,
            _ => WriteError::Failed(storage(error).into()),
        }
    }
}

impl From<UpdateError> for WriteError {
    fn from(error: UpdateError) -> Self {
        WriteError::Failed(error)
    }
}

/// A failed request as a registry error; a refusal with the API server's message if
/// it answered with one.
pub fn storage(error: Error) -> RegistryError {
    match error {
        Error::Api(status) if is_refusal(&status) => RegistryError::Refused(status.message),
        error => RegistryError::Storage(error.into()),
    }
}

/// Whether this is the API server's answer to the request, not a problem of the API
/// server itself. A webhook that does not answer is reported as an internal error.
fn is_refusal(status: &Status) -> bool {
    matches!(status.code, 400 | 403 | 405 | 413 | 422 | 500) && !status.message.is_empty()
}

/// A request with a timeout.
pub async fn with_timeout<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = |_| Error::Service("the API server did not answer in time".into());
    timeout(TIMEOUT, request).await.map_err(late)?
}

pub fn params() -> PostParams {
    PostParams {
        dry_run: false,
        field_manager: Some(MANAGER.to_owned()),
    }
}

pub fn patching() -> PatchParams {
    PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    }
}

pub fn exactly(uid: &str, version: &str) -> DeleteParams {
    DeleteParams::default().preconditions(Preconditions {
        uid: Some(uid.to_owned()),
        resource_version: Some(version.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_about_what_was_asked_is_a_refusal() {
        let answer = |code: u16, message: &str| {
            let mut status = Status::failure(message, "");
            status.code = code;
            storage(Error::Api(status.boxed()))
        };
        for code in [400, 403, 422, 500] {
            let error = answer(code, "over quota").to_string();
            assert_eq!(error, "the cluster refuses it: over quota");
        }
        for code in [401, 409, 429, 503, 504] {
            let error = answer(code, "later");
            assert!(matches!(error, RegistryError::Storage(_)), "{code}");
        }
        assert!(matches!(answer(500, ""), RegistryError::Storage(_)));
        let away = storage(Error::Service("away".into()));
        assert!(matches!(away, RegistryError::Storage(_)));
    }
}
