-- A release in steps was called a gray release.
ALTER TABLE models ADD COLUMN intended TEXT;
CREATE TABLE gray_releases (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    candidate INTEGER NOT NULL,
    stable INTEGER NOT NULL,
    status TEXT NOT NULL,
    step INTEGER NOT NULL,
    shadow_percent INTEGER NOT NULL,
    started_at TEXT NOT NULL,
    ended_at TEXT,
    keep_until REAL,
    progress TEXT NOT NULL,
    FOREIGN KEY (model, candidate) REFERENCES versions (model, version),
    FOREIGN KEY (model, stable) REFERENCES versions (model, version)
) STRICT;
CREATE UNIQUE INDEX one_release_at_a_time ON gray_releases (model) WHERE ended_at IS NULL;
