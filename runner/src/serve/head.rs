//! What all objects of an answer begin with.

use serde_json::{Value, json};

use super::{App, random, unix_time};

/// What all objects of a response begin with.
pub struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    pub fn new(app: &App, kind: &str) -> Head {
        Head {
            id: format!("{kind}-{:032x}", random()),
            created: unix_time(),
            model: app.options.model.clone(),
        }
    }

    /// An object of a kind, with the usage where there is one.
    pub fn object(&self, kind: &str, choices: Vec<Value>, usage: Option<Value>) -> Value {
        let mut object = json!({
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if let Some(usage) = usage {
            object["usage"] = usage;
        }
        object
    }
}
