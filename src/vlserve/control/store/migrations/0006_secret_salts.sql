-- The salt of a rollout's split is drawn at random and kept secret. Those that began before keep theirs.
ALTER TABLE gray_releases ADD COLUMN salt TEXT NOT NULL DEFAULT '';
UPDATE gray_releases SET salt = 'r' || id;
