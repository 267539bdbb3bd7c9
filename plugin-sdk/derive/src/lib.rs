//! The derives of the plugin SDK. What they make, and examples, stand at the traits in `tidemill-plugin-sdk`.

mod config;
mod event;
mod names;
mod state;

use proc_macro::TokenStream;
use syn::{DeriveInput, ItemStruct, parse_macro_input};

/// Names of reasons from the variants of an enum: see `Names`.
#[proc_macro_derive(Reason, attributes(name))]
pub fn reason(input: TokenStream) -> TokenStream {
    finish(names::derive(&parse_macro_input!(input as DeriveInput), "Reason"))
}

/// Names of timers from the variants of an enum: see `Names`.
#[proc_macro_derive(Timer, attributes(name))]
pub fn timer(input: TokenStream) -> TokenStream {
    finish(names::derive(&parse_macro_input!(input as DeriveInput), "Timer"))
}

/// Names of lookups from the variants of an enum: see `Names`.
#[proc_macro_derive(Lookup, attributes(name))]
pub fn lookup(input: TokenStream) -> TokenStream {
    finish(names::derive(&parse_macro_input!(input as DeriveInput), "Lookup"))
}

/// Values of a text field from the variants of an enum: see `Names`.
#[proc_macro_derive(Symbol, attributes(name))]
pub fn symbol(input: TokenStream) -> TokenStream {
    finish(names::derive(&parse_macro_input!(input as DeriveInput), "Symbol"))
}

/// A state of a session: see `State`. `#[state(version = 2, from = Old)]` takes over from an older one.
#[proc_macro_derive(State, attributes(state))]
pub fn state(input: TokenStream) -> TokenStream {
    finish(state::derive(&parse_macro_input!(input as DeriveInput), true))
}

/// The byte form of something that stands in a state: see `Form`.
#[proc_macro_derive(Form)]
pub fn form(input: TokenStream) -> TokenStream {
    finish(state::derive(&parse_macro_input!(input as DeriveInput), false))
}

/// A config, from a struct with named fields or an enum without: see `Config`.
/// `#[config(default = …)]` gives the value of a missing key, `#[name = "…"]` another key.
#[proc_macro_derive(Config, attributes(config, name))]
pub fn config(input: TokenStream) -> TokenStream {
    finish(config::derive(&parse_macro_input!(input as DeriveInput)))
}

/// Turns a struct into a view of an event, with a method for each field: see `EventView`.
#[proc_macro_attribute]
pub fn event(_: TokenStream, item: TokenStream) -> TokenStream {
    finish(event::expand(&parse_macro_input!(item as ItemStruct)))
}

fn finish(result: syn::Result<proc_macro2::TokenStream>) -> TokenStream {
    result.unwrap_or_else(|e| e.to_compile_error()).into()
}

/// `NewCampaign` as `new_campaign`.
fn snake(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.chars().enumerate() {
        if c.is_uppercase() && i > 0 {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out.trim_start_matches("r#").to_owned()
}

/// The text of `#[name = "…"]`, if there is one.
fn renamed(attrs: &[syn::Attribute]) -> syn::Result<Option<String>> {
    let Some(attribute) = attrs.iter().find(|a| a.path().is_ident("name")) else { return Ok(None) };
    let pair = attribute.meta.require_name_value()?;
    match &pair.value {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(s), .. }) => Ok(Some(s.value())),
        _ => Err(syn::Error::new_spanned(pair, "write #[name = \"…\"]")),
    }
}

/// A name that is there twice, or one that the host has for reasons of its own, is an error where it stands.
fn unique<'a>(
    what: &str,
    names: impl IntoIterator<Item = (&'a String, &'a dyn quote::ToTokens)>,
    taken: &[&str],
) -> syn::Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for (name, at) in names {
        if taken.contains(&name.as_str()) {
            let why = format!(
                "`{name}` is a reason of the host's own: choose another name, or write #[name = \"…\"]"
            );
            return Err(syn::Error::new_spanned(at, why));
        }
        if !seen.insert(name) {
            return Err(syn::Error::new_spanned(at, format!("{what} `{name}` is there twice")));
        }
    }
    Ok(())
}

/// The text of the doc comment.
fn doc(attrs: &[syn::Attribute]) -> String {
    let lines = attrs.iter().filter(|a| a.path().is_ident("doc")).filter_map(|a| match &a.meta {
        syn::Meta::NameValue(syn::MetaNameValue {
            value: syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(s), .. }),
            ..
        }) => Some(s.value().trim().to_owned()),
        _ => None,
    });
    lines.collect::<Vec<_>>().join(" ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use crate::{config, event, names};

    fn error(expanded: syn::Result<proc_macro2::TokenStream>) -> String {
        expanded.err().map_or_else(|| "it is taken".to_owned(), |e| e.to_string())
    }

    #[test]
    fn names_that_would_mean_two_things_do_not_compile() -> syn::Result<()> {
        let twice = syn::parse_str("struct C { #[name = \"gap\"] idle: u32, gap: u32 }")?;
        assert_eq!(error(config::derive(&twice)), "key `gap` is there twice");
        let twice = syn::parse_str("enum Mode { Strict, #[name = \"strict\"] Hard }")?;
        assert_eq!(error(config::derive(&twice)), "choice `strict` is there twice");
        let twice = syn::parse_str("struct Event { #[name = \"url\"] page: Text, url: Text }")?;
        assert_eq!(error(event::expand(&twice)), "field `url` is there twice");
        let twice = syn::parse_str("enum Due { Idle, #[name = \"idle\"] Gap }")?;
        assert_eq!(error(names::derive(&twice, "Timer")), "timer `idle` is there twice");
        for name in ["Limit", "PluginFault", "EndOfInput", "LookupFailed"] {
            let taken = syn::parse_str(&format!("enum Why {{ Idle, {name} }}"))?;
            assert!(
                error(names::derive(&taken, "Reason")).contains("is a reason of the host's own"),
                "{name}"
            );
            assert_eq!(error(names::derive(&taken, "Timer")), "it is taken");
        }
        Ok(())
    }
}
