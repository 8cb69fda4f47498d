-- Offline jobs that told the control service where their output is, so that it can show how far they are.
CREATE TABLE batch_jobs (
    out TEXT PRIMARY KEY,
    announced_at TEXT NOT NULL
) STRICT;
