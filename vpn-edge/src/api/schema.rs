//! Schemas of the bodies' strings, for the API's description.

use utoipa::openapi::schema::{AnyOfBuilder, ArrayBuilder, Schema, SchemaType};
use utoipa::openapi::{KnownFormat, Object, ObjectBuilder, RefOr, SchemaFormat, Type};

/// As in `domain::tenant`.
const MAX_NETWORKS: usize = 64;

const IPV4: &str = r"((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
/// Allowed characters: not every such text is an address.
const IPV6: &str = "[0-9A-Fa-f:.]{2,45}";

fn text(pattern: &str, example: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern(Some(format!("^{pattern}$")))
        .examples([example])
}

fn or_null(text: ObjectBuilder) -> Object {
    let kinds = SchemaType::from_iter([Type::String, Type::Null]);
    text.schema_type(kinds).build()
}

pub fn organisation() -> Object {
    text("[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "acme").build()
}

pub fn namespace() -> Object {
    dns_label().build()
}

pub fn namespace_or_null() -> Object {
    or_null(dns_label())
}

fn dns_label() -> ObjectBuilder {
    text("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "kovra-acme")
}

pub fn networks() -> Schema {
    let ipv4 = text(&format!("{IPV4}/(3[0-2]|[12]?[0-9])"), "10.97.1.0/24");
    let ipv6 = text(
        &format!("{IPV6}/(12[0-8]|1[01][0-9]|[1-9]?[0-9])"),
        "fd00:97:1::/64",
    );
    let network = AnyOfBuilder::new().item(ipv4).item(ipv6).build();
    ArrayBuilder::new()
        .items(RefOr::T(Schema::AnyOf(network)))
        .max_items(Some(MAX_NETWORKS))
        .unique_items(true)
        .description(Some(
            "IPv4, and IPv6 where tunnels carry it; with no bits set after the prefix.",
        ))
        .build()
        .into()
}

pub fn networks_or_null() -> Schema {
    AnyOfBuilder::new()
        .item(networks())
        .item(ObjectBuilder::new().schema_type(Type::Null))
        .build()
        .into()
}

pub fn ipv4_or_null() -> Object {
    or_null(text(IPV4, "10.55.59.2"))
}

pub fn ipv6_or_null() -> Object {
    or_null(text(IPV6, "fd9a:2c11:7e03:1::2"))
}

pub fn ipv4_network_or_null() -> Object {
    or_null(text(
        &format!("{IPV4}/(3[0-2]|[12]?[0-9])"),
        "10.55.59.0/24",
    ))
}

pub fn ipv6_network_or_null() -> Object {
    or_null(text(
        &format!("{IPV6}/[0-9]{{1,3}}"),
        "fd9a:2c11:7e03:1::/64",
    ))
}

/// 32 bytes: the last of the 43 digits has two bits less.
pub fn key_or_null() -> Object {
    or_null(text(
        "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=",
        "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=",
    ))
}

pub fn id_or_null() -> Object {
    let id = ObjectBuilder::new().format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)));
    or_null(id)
}
