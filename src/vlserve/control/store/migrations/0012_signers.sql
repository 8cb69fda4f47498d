-- Whose key signed the archive, as JSON: name, hint, pem. Null: no trusted key is known to have.
ALTER TABLE versions ADD COLUMN signer TEXT;
