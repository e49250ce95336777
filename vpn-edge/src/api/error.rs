//! The API's errors.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::body::ErrorBody;
use super::refusals;
use crate::auth::Refused;
use crate::domain::VpnError;
use crate::domain::tenant::InvalidTenant;
use crate::registry::{RegistryError, UpdateError};

#[derive(Debug)]
pub enum ApiError {
    Vpn(VpnError),
    /// The caller is unknown, or may not do this.
    Refused(Refused),
    Status(StatusCode, String),
    /// The cause is only in the log.
    Internal,
}

impl ApiError {
    pub fn status(status: StatusCode, message: String) -> ApiError {
        ApiError::Status(status, message)
    }

    pub fn internal(cause: impl std::fmt::Display) -> ApiError {
        tracing::error!(%cause, "request failed");
        ApiError::Internal
    }

    pub fn code(&self) -> StatusCode {
        match self {
            ApiError::Vpn(error) => refusals::status(*error),
            ApiError::Refused(refused) => refused.status(),
            ApiError::Status(status, _) => *status,
            ApiError::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The value of `error` in the answer.
    pub fn message(&self) -> String {
        match self {
            ApiError::Vpn(error) => error.to_string(),
            ApiError::Refused(refused) => refused.to_string(),
            ApiError::Status(_, message) => message.clone(),
            ApiError::Internal => "internal error".to_owned(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, words) = (self.code(), self.message());
        match self {
            ApiError::Vpn(error) => {
                let json = [(header::CONTENT_TYPE, "application/json")];
                (status, json, refusals::body(error)).into_response()
            }
            ApiError::Refused(refused) => refused.into_response(),
            ApiError::Status(..) | ApiError::Internal => {
                let body = ErrorBody {
                    error: words,
                    upgrade_required: false,
                };
                (status, Json(body)).into_response()
            }
        }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> ApiError {
        ApiError::Refused(refused)
    }
}

impl From<VpnError> for ApiError {
    fn from(error: VpnError) -> ApiError {
        ApiError::Vpn(error)
    }
}

impl From<InvalidTenant> for ApiError {
    fn from(error: InvalidTenant) -> ApiError {
        ApiError::Status(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> ApiError {
        match error {
            RegistryError::AlreadyExists(_) => {
                ApiError::Status(StatusCode::CONFLICT, error.to_string())
            }
            RegistryError::NoNamespace(_) => {
                ApiError::Status(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
            }
            // The operator has to resolve it; retrying can succeed afterwards.
            RegistryError::Refused(_) => {
                ApiError::Status(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            RegistryError::Open(_) | RegistryError::Storage(_) => ApiError::internal(error),
        }
    }
}

impl From<UpdateError> for ApiError {
    fn from(error: UpdateError) -> ApiError {
        match error {
            UpdateError::NotFound => VpnError::TenantNotFound.into(),
            UpdateError::Refused(error) => error.into(),
            UpdateError::Registry(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refusal_by_the_cluster_is_told_in_its_words() {
        let refused = RegistryError::Refused("secrets \"k\" is forbidden: over quota".to_owned());
        let response = ApiError::from(UpdateError::from(refused)).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let body = axum::body::to_bytes(response.into_body(), 4096).await;
        let body: serde_json::Value = serde_json::from_slice(&body.unwrap()).unwrap();
        let words = "the cluster refuses it: secrets \"k\" is forbidden: over quota";
        assert_eq!(body, serde_json::json!({ "error": words }));
    }
}
