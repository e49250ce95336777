//! The database's schema and how older ones become it.

use rusqlite::Connection;

use super::begin;

/// The tables, one step a version; `user_version` counts the steps taken.
pub const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE tenant (
        id TEXT PRIMARY KEY NOT NULL CHECK (length(id) = 36),
        organisation TEXT NOT NULL CHECK (organisation <> ''),
        plan TEXT NOT NULL
            CHECK (plan IN ('developer', 'team', 'business', 'enterprise_cloud')),
        ready INTEGER NOT NULL CHECK (ready IN (0, 1)),
        namespace TEXT NOT NULL UNIQUE,
        networks TEXT NOT NULL CHECK (json_valid(networks)),
        state TEXT NOT NULL
            CHECK (state IN ('unavailable', 'disabled', 'enabling', 'enabled', 'failed')),
        generation INTEGER NOT NULL CHECK (generation >= 0),
        since TEXT NOT NULL,
        failure TEXT CHECK ((failure IS NOT NULL) = (state = 'failed')),
        port INTEGER UNIQUE CHECK (port BETWEEN 1024 AND 65535),
        server_key BLOB CHECK (length(server_key) = 32),
        client_key BLOB CHECK (length(client_key) = 32),
        created_at TEXT,
        version INTEGER NOT NULL CHECK (version > 0),
        CHECK ((port IS NULL) = (server_key IS NULL)),
        CHECK ((port IS NULL) = (client_key IS NULL)),
        CHECK ((port IS NULL) = (created_at IS NULL)),
        CHECK (port IS NOT NULL OR state NOT IN ('enabling', 'enabled')),
        CHECK (port IS NULL OR state NOT IN ('unavailable', 'disabled'))
    ) STRICT;
    -- Ports that were held once, in the order of their release.
    CREATE TABLE released (
        turn INTEGER PRIMARY KEY,
        port INTEGER NOT NULL UNIQUE
    ) STRICT;
    -- The last generation of deleted tenants.
    CREATE TABLE deleted (
        id TEXT PRIMARY KEY NOT NULL,
        generation INTEGER NOT NULL
    ) STRICT;
",
    "
    -- Of its client a tenant has the private key or, if the client gave it, the
    -- public one. Constraints change only with the table.
    CREATE TABLE new (
        id TEXT PRIMARY KEY NOT NULL CHECK (length(id) = 36),
        organisation TEXT NOT NULL CHECK (organisation <> ''),
        plan TEXT NOT NULL
            CHECK (plan IN ('developer', 'team', 'business', 'enterprise_cloud')),
        ready INTEGER NOT NULL CHECK (ready IN (0, 1)),
        namespace TEXT NOT NULL UNIQUE,
        networks TEXT NOT NULL CHECK (json_valid(networks)),
        state TEXT NOT NULL
            CHECK (state IN ('unavailable', 'disabled', 'enabling', 'enabled', 'failed')),
        generation INTEGER NOT NULL CHECK (generation >= 0),
        since TEXT NOT NULL,
        failure TEXT CHECK ((failure IS NOT NULL) = (state = 'failed')),
        port INTEGER UNIQUE CHECK (port BETWEEN 1024 AND 65535),
        server_key BLOB,
        client_key BLOB,
        client_public_key BLOB CHECK (length(client_public_key) = 32),
        created_at TEXT,
        version INTEGER NOT NULL CHECK (version > 0),
        CHECK ((port IS NULL) = (server_key IS NULL)),
        CHECK ((port IS NOT NULL) = (client_key IS NOT NULL) + (client_public_key IS NOT NULL)),
        CHECK ((port IS NULL) = (created_at IS NULL)),
        CHECK (port IS NOT NULL OR state NOT IN ('enabling', 'enabled')),
        CHECK (port IS NULL OR state NOT IN ('unavailable', 'disabled'))
    ) STRICT;
    INSERT INTO new
        SELECT id, organisation, plan, ready, namespace, networks, state, generation, since,
               failure, port, server_key, client_key, NULL, created_at, version
        FROM tenant;
    DROP TABLE tenant;
    ALTER TABLE new RENAME TO tenant;
    -- One row. The name is what the database's key file knows it by. Private keys
    -- are encrypted by super::unlock, since it takes keys; until the file was
    -- rewritten after that, they may be in its free pages as they were.
    CREATE TABLE sealing (
        database TEXT NOT NULL CHECK (length(database) = 32),
        state TEXT NOT NULL CHECK (state IN ('plain', 'unscrubbed', 'sealed'))
    ) STRICT;
    INSERT INTO sealing VALUES (lower(hex(randomblob(16))), 'plain');
",
];

/// Brings the tables up to this program's.
///
/// # Errors
///
/// When it is none of this program's, or newer.
pub fn migrate(connection: &mut Connection) -> Result<(), String> {
    let sql = |error: rusqlite::Error| error.to_string();
    let number = |connection: &Connection, query: &str| {
        connection
            .query_row(query, [], |row| row.get::<_, i64>(0))
            .map_err(sql)
    };
    let version = number(connection, "PRAGMA user_version")?;
    let known = MIGRATIONS.len();
    if usize::try_from(version).is_ok_and(|version| version > known) {
        return Err(format!(
            "it has schema {version} and this vpn-edge knows schemas up to {known}; use the newer vpn-edge"
        ));
    }
    if version == 0 && number(connection, "SELECT count(*) FROM sqlite_schema")? > 0 {
        return Err("it is a database of another program; name another file".to_owned());
    }
    for (step, migration) in (1..)
        .zip(MIGRATIONS)
        .skip_while(|(step, _)| *step <= version)
    {
        let transaction = begin(connection).map_err(sql)?;
        transaction.execute_batch(migration).map_err(sql)?;
        transaction
            .pragma_update(None, "user_version", step)
            .map_err(sql)?;
        transaction.commit().map_err(sql)?;
    }
    Ok(())
}
