-- A version is on one engine. All that were registered before are on TorchServe.
ALTER TABLE versions ADD COLUMN engine TEXT NOT NULL DEFAULT 'torchserve';
