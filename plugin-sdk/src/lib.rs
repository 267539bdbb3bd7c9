//! What the author of a plugin sees. The contract comes first (see `wit/`); until it stands, the
//! only rule is the built-in one, `builtin:gap`, in `tidemill-engine`.
