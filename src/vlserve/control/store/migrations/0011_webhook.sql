-- Up to which event the webhook was told of releases; no row: there never was a webhook.
CREATE TABLE webhook (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    told INTEGER NOT NULL
) STRICT;
