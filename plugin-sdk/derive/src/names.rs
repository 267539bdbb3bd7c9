//! Enums whose variants have a name and a number.

use crate::{renamed, snake, unique};
use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Data, DeriveInput, Fields};

/// Reasons that the host gives itself; it refuses a plugin that has one of that name.
const RESERVED: [&str; 4] = ["end_of_input", "limit", "lookup_failed", "plugin_fault"];

pub(crate) fn derive(input: &DeriveInput, which: &str) -> syn::Result<TokenStream> {
    let Data::Enum(e) = &input.data else {
        return Err(syn::Error::new_spanned(input, format!("{which} is for enums")));
    };
    let most = if which == "Timer" { 16 } else { 255 };
    if e.variants.len() > most {
        return Err(syn::Error::new_spanned(input, format!("at most {most} variants")));
    }
    let (mut names, mut variants) = (Vec::new(), Vec::new());
    for v in &e.variants {
        if !matches!(v.fields, Fields::Unit) || v.discriminant.is_some() {
            return Err(syn::Error::new_spanned(v, "a variant without fields and without a value is wanted"));
        }
        names.push(renamed(&v.attrs)?.unwrap_or_else(|| snake(&v.ident.to_string())));
        variants.push(&v.ident);
    }
    let taken = if which == "Reason" { &RESERVED[..] } else { &[] };
    let pairs = names.iter().zip(&variants).map(|(name, at)| (name, at as &dyn quote::ToTokens));
    unique(&which.to_lowercase(), pairs, taken)?;
    let numbers: Vec<u32> = (0..variants.len() as u32).collect();
    let (name, which) = (&input.ident, format_ident!("{which}"));
    Ok(quote! {
        impl ::tidemill_plugin_sdk::Names for #name {
            const NAMES: &'static [&'static str] = &[#(#names),*];
            #[inline]
            fn number(&self) -> u32 {
                match *self { #(#name::#variants => #numbers,)* }
            }
            #[inline]
            fn of(number: u32) -> ::core::option::Option<Self> {
                match number { #(#numbers => ::core::option::Option::Some(#name::#variants),)* _ => ::core::option::Option::None }
            }
        }
        impl ::tidemill_plugin_sdk::#which for #name {}
    })
}
