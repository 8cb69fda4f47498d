-- Which answer of a shadow pair a person says is right: training data, and no evidence.
CREATE TABLE marks (
    model TEXT NOT NULL REFERENCES models (model),
    request_id TEXT NOT NULL,
    stable INTEGER NOT NULL,
    candidate INTEGER NOT NULL,
    right_answer TEXT NOT NULL CHECK (right_answer IN ('stable', 'candidate', 'neither')),
    label TEXT NOT NULL,
    marked_at TEXT NOT NULL,
    PRIMARY KEY (model, request_id, stable, candidate)
) STRICT;
