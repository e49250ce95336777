//! What the handlers take out of a request.

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

/// A caller who downloads something, by no other page's doing.
pub struct Downloader(pub Caller);

impl FromRequestParts<Api> for Downloader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Downloader, ApiError> {
        let caller = api.identity.caller(parts).await?;
        api.identity.check_own_link(parts)?;
        Ok(Downloader(caller))
    }
}

/// The tenant named in the path. What is no UUID names no tenant.
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
    /// Of the spellings of a UUID only the ordinary one.
    pub fn parse(text: &str) -> Result<Uuid, VpnError> {
        match Uuid::try_parse(text) {
            Ok(id) if text.len() == 36 => Ok(id),
            _ => Err(VpnError::TenantNotFound),
        }
    }
}

/// Reads a JSON body; what is wrong with it is the error.
///
/// A function and not an argument of the handlers, so that a body is looked at
/// after the caller.
pub async fn json<T: DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    match Json::from_request(request, &()).await {
        Ok(Json(Object(value))) => Ok(value),
        Err(rejection) => Err(ApiError::status(rejection.status(), rejection.body_text())),
    }
}

/// The same where there may be no body at all.
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

/// A `T` from a JSON object alone: derived structs take an array as well, field
/// by field.
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
