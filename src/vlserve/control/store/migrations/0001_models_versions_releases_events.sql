CREATE TABLE models (
    model TEXT PRIMARY KEY,
    weights TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE TABLE versions (
    model TEXT NOT NULL REFERENCES models (model),
    version INTEGER NOT NULL,
    archive TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    manifest TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    was_ready INTEGER NOT NULL DEFAULT 0,
    registered_at TEXT NOT NULL,
    changed_at TEXT NOT NULL,
    PRIMARY KEY (model, version)
) STRICT;
CREATE TABLE releases (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    version INTEGER NOT NULL,
    at TEXT NOT NULL,
    rolled_back_at TEXT,
    FOREIGN KEY (model, version) REFERENCES versions (model, version)
) STRICT;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    model TEXT NOT NULL,
    version INTEGER,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_model ON events (model, id);
CREATE TRIGGER events_are_not_changed BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_are_not_deleted BEFORE DELETE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
