//! The API's description, made from the attributes of its handlers.
//!
//! Handlers list their own answers; answers that any request may get are added here.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::http::{HeaderName, header};
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{
    Components, Content, HeaderBuilder, InfoBuilder, ObjectBuilder, OpenApi, OpenApiBuilder, Ref,
    SecurityRequirement, Type,
};
use utoipa::{PartialSchema, ToSchema};

use super::body::{ErrorBody, NewKeys};

/// The name of the security scheme.
const BEARER: &str = "bearer";

static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    let text = super::openapi().to_json();
    text.expect("the description has text for keys alone")
        .into()
});

/// The description of this API.
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    operation_id = "openapi",
    tag = "api",
    security(()),
    responses((status = 200, description = "OpenAPI 3.1.", body = Object, content_type = "application/json"))
)]
pub async fn document() -> ([(HeaderName, &'static str); 1], Bytes) {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, DOCUMENT.clone())
}

/// The description without routes.
pub fn empty() -> OpenApi {
    let mut components = Components::new();
    // Schemas that handlers refer to by name only.
    let named = [
        (ErrorBody::name(), ErrorBody::schema()),
        (NewKeys::name(), NewKeys::schema()),
    ];
    for (name, schema) in named {
        components.schemas.insert(name.into(), schema);
    }
    let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.add_security_scheme(BEARER, scheme);
    let info = InfoBuilder::new()
        .title("vpn-edge")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Tenants, and the VPN of each. A tenant of another organisation is answered \
             like one that does not exist.",
        ));
    OpenApiBuilder::new()
        .info(info.build())
        .components(Some(components))
        .security(Some([SecurityRequirement::new::<_, _, &str>(BEARER, [])]))
        .build()
}

/// Adds to every route the answers that any route of its kind may give.
pub fn complete(mut document: OpenApi) -> OpenApi {
    for (path, item) in &mut document.paths.paths {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.patch,
            &mut item.delete,
        ];
        for operation in operations.into_iter().flatten() {
            complete_operation(path, operation);
        }
    }
    document
}

fn complete_operation(path: &str, operation: &mut Operation) {
    let mut add = |status: u16, description: &str| {
        let response = refusal(status, description);
        let responses = &mut operation.responses.responses;
        let response = response.build().into();
        responses.entry(status.to_string()).or_insert(response);
    };
    add(408, "The request took too long.");
    add(500, "Internal error; the cause is in vpn-edge's log.");
    if operation.security.is_none() {
        add(400, "The request cannot be read.");
        add(401, "The credential is missing or invalid.");
        add(403, "The caller may not do this.");
        add(
            429,
            "Too many bad credentials came from the caller's address.",
        );
        add(
            503,
            "A service that this depends on cannot be reached at the moment.",
        );
    }
    if path.contains("{id}") {
        add(404, "The caller has no such tenant.");
    }
    if operation.request_body.is_some() {
        add(400, "The body is not JSON.");
        add(413, "The body is too large.");
        add(415, "The body's Content-Type is not JSON.");
        add(422, "The body is JSON, but does not match its schema.");
    }
}

fn refusal(status: u16, description: &str) -> ResponseBuilder {
    let body = Ref::from_schema_name(ErrorBody::name());
    let mut response = ResponseBuilder::new()
        .description(description)
        .content("application/json", Content::new(Some(body)));
    let header = match status {
        401 => Some((
            "WWW-Authenticate",
            Type::String,
            "The error, as in RFC 6750.",
        )),
        429 => Some(("Retry-After", Type::Integer, "Seconds to wait.")),
        _ => None,
    };
    if let Some((name, kind, description)) = header {
        let schema = ObjectBuilder::new().schema_type(kind);
        let header = HeaderBuilder::new()
            .schema(Some(schema))
            .description(Some(description));
        response = response.header(name, header.build());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn every_route_tells_what_it_refuses() {
        let document: Value = serde_json::from_slice(&DOCUMENT).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        let operation = &document["paths"]["/v1/tenants/{id}/vpn/enable"]["post"];
        let responses = operation["responses"].as_object().unwrap();
        let statuses: Vec<&str> = responses.keys().map(String::as_str).collect();
        let all = "202 400 401 403 404 408 409 413 415 422 429 500 503";
        assert_eq!(statuses.join(" "), all);
        let wait = &responses["429"]["headers"]["Retry-After"]["schema"]["type"];
        assert_eq!(wait, "integer");
        assert_ne!(operation["requestBody"]["required"], true);
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let text = std::str::from_utf8(&DOCUMENT).unwrap();
        let document: Value = serde_json::from_str(text).unwrap();
        let references: Vec<&str> = text
            .split("\"$ref\":\"#")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap())
            .collect();
        assert!(references.len() > 10, "{references:?}");
        for reference in references {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
    }
}
