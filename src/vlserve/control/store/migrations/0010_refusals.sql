-- Calls that named keys were refused for their role: counted, so that no caller fills the ledger.
CREATE TABLE refusals (
    key TEXT NOT NULL,
    call TEXT NOT NULL,
    needs TEXT NOT NULL,
    model TEXT NOT NULL,
    first_at TEXT NOT NULL,
    last_at TEXT NOT NULL,
    times INTEGER NOT NULL,
    PRIMARY KEY (key, call, needs, model)
) STRICT;
-- Whose mark it is.
ALTER TABLE marks ADD COLUMN marked_by TEXT NOT NULL DEFAULT '';
