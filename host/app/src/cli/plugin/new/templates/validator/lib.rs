//! A validator: takes page views of this site by people, and rejects the rest.
//!
//! It is a pure function. It sees one event at a time and remembers nothing between them; its verdict is stored with the event
//! and never asked again.

use tidemill_plugin_sdk::prelude::*;

/// What the validator sees of an event: these fields and its time. Where they are in a record says `[source.x.fields]` of
/// a pipeline. A missing text is "".
#[event]
pub struct Event {
    url: Text,
    agent: Text,
}

/// What stands under `config` in a pipeline. `tidemill check` judges it field by field.
#[derive(Config, Debug)]
pub struct Rules {
    /// What every address begins with.
    #[config(default = "/".into())]
    site: String,
    /// Words in the agent's name that mark a robot.
    #[config(default = vec!["bot".into(), "crawler".into()])]
    robots: Vec<String>,
}

/// Why an event is rejected: the `reason` of its dead letter.
#[derive(Reason, Clone, Copy)]
pub enum Why {
    ForeignUrl,
    Robot,
}

/// The validator with its config.
#[derive(Debug)]
pub struct People {
    rules: Rules,
}

impl Validator for People {
    type Config = Rules;
    type Event = Event;
    type Reason = Why;

    fn configure(rules: Rules) -> Result<Self, Vec<ConfigError>> {
        if rules.site.is_empty() {
            return Err(ConfigError::at("/site", "it is empty; every address begins with \"/\"").into());
        }
        Ok(People { rules })
    }

    fn check(&self, _: &mut Judging<Self>, event: &Event) -> Result<(), Rejected<Why>> {
        // The message is for whoever reads the dead letter, and is made only if there is one.
        ensure(event.url().starts_with(&self.rules.site), Why::ForeignUrl, || {
            format!("{:?} does not begin with {:?}", event.url(), self.rules.site)
        })?;
        let agent = event.agent().to_lowercase();
        let robot = self.rules.robots.iter().find(|word| agent.contains(&word.to_lowercase()));
        ensure(robot.is_none(), Why::Robot, || format!("{:?} is a robot", event.agent()))
    }
}

tidemill_plugin_sdk::export!(validator People);
