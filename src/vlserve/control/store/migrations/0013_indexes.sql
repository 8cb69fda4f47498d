-- What is read of a model costs what its own rows cost, not those of all models and of all time.
-- A version's state stands behind its manifest, which is long.
CREATE INDEX versions_by_state ON versions (model, state, version);
CREATE INDEX releases_in_force ON releases (model, id, version) WHERE rolled_back_at IS NULL;
CREATE INDEX events_of_models ON events (model, id);
CREATE INDEX rollouts_of_models ON gray_releases (model, id);
CREATE INDEX rollouts_kept ON gray_releases (id) WHERE keep_until IS NOT NULL;
