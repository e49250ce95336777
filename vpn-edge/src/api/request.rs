//! Extractors of the handlers.

use std::fmt;
use std::marker::PhantomData;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use uuid::Uuid;

use super::Api;
use super::error::ApiError;
use crate::auth::Caller;
use crate::domain::VpnError;

impl FromRequestParts<Api> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Caller, ApiError> {
        Ok(api.identity.caller(parts).await?)
    }
}

/// A caller who downloads something, not led by another site.
pub struct Downloader(pub Caller);

impl FromRequestParts<Api> for Downloader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Downloader, ApiError> {
        let caller = api.identity.caller(parts).await?;
        api.identity.check_own_link(parts)?;
        Ok(Downloader(caller))
    }
}

/// The tenant named in the path. A text that is not a UUID names no tenant.
pub struct TenantId(pub Uuid);

impl FromRequestParts<Api> for TenantId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<TenantId, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, api)
            .await
            .map_err(|_| VpnError::TenantNotFound)?;
        Ok(TenantId(TenantId::parse(&text)?))
    }
}

impl TenantId {
    /// Only the canonical form of a UUID.
    pub fn parse(text: &str) -> Result<Uuid, VpnError> {
        match Uuid::try_parse(text) {
            Ok(id) if text.len() == 36 => Ok(id),
            _ => Err(VpnError::TenantNotFound),
        }
    }
}

/// Reads a JSON body; the error says what is wrong with it.
///
/// A function instead of a handler's argument, so that the body is read after the
/// caller is checked.
pub async fn json<T: DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    match Json::from_request(request, &()).await {
        Ok(Json(Object(value))) => Ok(value),
        Err(rejection) => Err(ApiError::status(rejection.status(), rejection.body_text())),
    }
}

/// The same, if the body may be missing.
pub async fn json_or_nothing<T: DeserializeOwned + Default>(
    request: Request,
) -> Result<T, ApiError> {
    let (parts, body) = request.into_parts();
    let whole = Request::from_parts(parts.clone(), body);
    let bytes = Bytes::from_request(whole, &())
        .await
        .map_err(|rejection| ApiError::status(rejection.status(), rejection.body_text()))?;
    if bytes.is_empty() {
        return Ok(T::default());
    }
    json(Request::from_parts(parts, Body::from(bytes))).await
}

/// A `T` from a JSON object only: derived structs also accept arrays, field by field.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer
            .deserialize_map(Fields(PhantomData))
            .map(Object)
    }
}
