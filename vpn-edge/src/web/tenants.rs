//! The list of the visitor's tenants.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Redirect, Response};

use super::browser_user::{BrowserUser, parameter};
use super::pages::{self, ErrorPage, Filter, PoolUse, Row, plan_name};
use crate::api::Api;
use crate::domain;
use crate::domain::Tenant;

/// Rows per page.
const ROWS: usize = 50;

pub async fn list(
    State(api): State<Api>,
    BrowserUser(caller): BrowserUser,
    RawQuery(query): RawQuery,
) -> Result<Response, ErrorPage> {
    let query = query.unwrap_or_default();
    let tenants = api.seen(&caller).await?;
    // A visitor with a single tenant is sent to it.
    if let ([only], false, true) = (&tenants[..], caller.is_admin(), query.is_empty()) {
        return Ok(Redirect::to(&format!("/tenants/{}", only.id)).into_response());
    }
    let filter = Filter::of(&query);
    let mut found: Vec<&Arc<Tenant>> = tenants
        .iter()
        .filter(|tenant| filter.takes(tenant))
        .collect();
    found.sort_by_key(|tenant| (&tenant.organisation, &tenant.namespace));
    let pages = found.len().div_ceil(ROWS).max(1);
    let page = parameter(&query, "page").and_then(|page| page.parse().ok());
    let page = page.unwrap_or(1).clamp(1, pages);
    let before = (page - 1) * ROWS;
    let rows: Vec<Row> = found.iter().skip(before).take(ROWS).map(row).collect();
    let is_page = |page: usize| (1..=pages).contains(&page);
    let link = |page: usize| is_page(page).then(|| filter.link(page));
    let listed = pages::Tenants {
        admin: caller.is_admin(),
        pools: pools(&api, &tenants),
        states: domain::State::ALL
            .map(|state| {
                let of_it = tenants.iter().filter(|tenant| tenant.vpn.state == state);
                (state, of_it.count())
            })
            .into(),
        all_states: domain::State::ALL,
        first: before + usize::from(!rows.is_empty()),
        last: before + rows.len(),
        total: found.len(),
        previous: link(page - 1),
        next: link(page + 1),
        filter,
        rows,
        browser_user: Some(caller),
    };
    Ok(listed.into_response())
}

fn row(tenant: &&Arc<Tenant>) -> Row {
    Row {
        id: tenant.id,
        namespace: tenant.namespace.clone(),
        organisation: tenant.organisation.clone(),
        plan: plan_name(tenant.plan),
        state: tenant.vpn.state.as_str(),
        port: port(tenant),
    }
}

fn port(tenant: &Tenant) -> Option<u16> {
    let allocation = tenant.vpn.allocation.as_ref();
    allocation.map(|allocation| allocation.port)
}

fn pools(api: &Api, tenants: &[Arc<Tenant>]) -> Vec<PoolUse> {
    let pools = api.settings.pools.iter();
    let of_pool = |pool: &domain::Pool| {
        let ports = tenants.iter().filter_map(|tenant| port(tenant));
        PoolUse {
            name: pool.hostname().to_owned(),
            used: ports.filter(|port| pool.range().contains(*port)).count(),
            size: pool.range().ports().count(),
        }
    };
    pools.map(of_pool).collect()
}

impl Filter {
    fn of(query: &str) -> Filter {
        let search = parameter(query, "search").unwrap_or_default();
        let state = parameter(query, "state");
        Filter {
            search: search.trim().to_owned(),
            state: state.and_then(|name| {
                let mut states = domain::State::ALL.into_iter();
                states.find(|state| state.as_str() == name)
            }),
        }
    }

    fn takes(&self, tenant: &Tenant) -> bool {
        if self.state.is_some_and(|state| state != tenant.vpn.state) {
            return false;
        }
        let search = self.search.to_lowercase();
        let port = port(tenant).map(|port| port.to_string());
        tenant.organisation.to_lowercase().contains(&search)
            || tenant.namespace.contains(&search)
            || tenant.id.to_string().contains(&search)
            || port.is_some_and(|port| port == search)
    }

    fn link(&self, page: usize) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("search", &self.search);
        if let Some(state) = self.state {
            query.append_pair("state", state.as_str());
        }
        query.append_pair("page", &page.to_string());
        format!("/tenants?{}", query.finish())
    }
}
