//! `vpn-edge audit`.

use std::io::Write;

use anyhow::Result;
use clap::Args;
use uuid::Uuid;

use super::{ServerArgs, print_json, render};
use crate::api::{AuditList, AuditRecord};
use crate::args::Output;

/// Maximum number of records per request.
const PAGE: usize = 1000;

/// `vpn-edge audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Select the tenant with this ID, which may be deleted by now.
    #[arg(long, value_name = "ID")]
    tenant: Option<Uuid>,
    /// Number of records at most, newest first.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

/// Runs `vpn-edge audit`, printing to standard output.
///
/// # Errors
///
/// What the API says.
pub async fn run(args: AuditArgs) -> Result<()> {
    execute(args, &mut std::io::stdout().lock()).await
}

pub async fn execute(args: AuditArgs, out: &mut dyn Write) -> Result<()> {
    let client = args.server.client()?;
    let mut records: Vec<AuditRecord> = Vec::new();
    let mut next = None;
    while records.len() < args.limit {
        let limit = PAGE.min(args.limit - records.len());
        let mut path = format!("/v1/audit?limit={limit}");
        if let Some(tenant) = args.tenant {
            path += &format!("&tenant={tenant}");
        }
        if let Some(before) = next {
            path += &format!("&before={before}");
        }
        let list: AuditList = client.get(&path).await?;
        records.extend(list.records);
        next = list.next;
        if next.is_none() {
            break;
        }
    }
    match args.server.output.output {
        Output::Table => write!(out, "{}", render::audit(&records))?,
        Output::Json => print_json(out, &AuditList { records, next })?,
    }
    Ok(())
}
