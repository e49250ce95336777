//! The audit log's page, for admins.

use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::browser_user::{BrowserUser, parameter};
use super::pages::{Audit, ErrorPage};
use crate::api::Api;
use crate::audit::Query;

/// Records per page.
const ROWS: usize = 100;

pub async fn show(
    State(api): State<Api>,
    BrowserUser(caller): BrowserUser,
    RawQuery(query): RawQuery,
) -> Result<Response, ErrorPage> {
    let query = query.unwrap_or_default();
    let id = |name| parameter(&query, name).and_then(|text| Uuid::try_parse(&text).ok());
    let tenant = id("tenant");
    let list = api
        .audit(
            &caller,
            Query {
                tenant,
                limit: ROWS,
                before: id("before"),
            },
        )
        .await?;
    let link = |next: Uuid| match tenant {
        Some(tenant) => format!("/audit?tenant={tenant}&before={next}"),
        None => format!("/audit?before={next}"),
    };
    let page = Audit {
        of: tenant,
        older: list.next.map(link),
        records: list.records,
        browser_user: Some(caller),
    };
    Ok(page.into_response())
}
