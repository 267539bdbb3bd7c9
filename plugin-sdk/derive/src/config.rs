//! Configs: a JSON Schema, and reading with every problem at once.

use crate::{doc, renamed, snake, unique};
use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Data, DataStruct, DeriveInput, Expr, Fields};

pub(crate) fn derive(input: &DeriveInput) -> syn::Result<TokenStream> {
    match &input.data {
        Data::Struct(s) => of_struct(input, s),
        Data::Enum(e) => of_enum(input, e),
        Data::Union(_) => Err(syn::Error::new_spanned(input, "a config is a struct or an enum")),
    }
}

fn of_struct(input: &DeriveInput, s: &DataStruct) -> syn::Result<TokenStream> {
    let Fields::Named(fields) = &s.fields else {
        return Err(syn::Error::new_spanned(input, "a config has named fields"));
    };
    let (mut idents, mut locals, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    let (mut types, mut docs, mut defaults) = (Vec::new(), Vec::new(), Vec::new());
    for f in &fields.named {
        let Some(ident) = &f.ident else { continue };
        let mut default: Option<Expr> = None;
        for a in f.attrs.iter().filter(|a| a.path().is_ident("config")) {
            a.parse_nested_meta(|meta| {
                if meta.path.is_ident("default") {
                    default = Some(match meta.value() {
                        Ok(v) => v.parse()?,
                        Err(_) => syn::parse_quote!(::core::default::Default::default()),
                    });
                    Ok(())
                } else {
                    Err(meta.error("default = … is wanted"))
                }
            })?;
        }
        keys.push(renamed(&f.attrs)?.unwrap_or_else(|| snake(&ident.to_string())));
        locals.push(format_ident!("field_{}", ident.to_string().trim_start_matches("r#")));
        idents.push(ident);
        types.push(&f.ty);
        docs.push(doc(&f.attrs));
        defaults.push(match default {
            Some(e) => quote!(::core::option::Option::Some(#e)),
            None => quote!(::core::option::Option::None),
        });
    }
    unique("key", keys.iter().zip(&idents).map(|(key, at)| (key, at as &dyn quote::ToTokens)), &[])?;
    let (name, about) = (&input.ident, doc(&input.attrs));
    let config = quote!(::tidemill_plugin_sdk::Config);
    Ok(quote! {
        impl #config for #name {
            fn schema() -> ::tidemill_plugin_sdk::Json {
                let mut schema = ::tidemill_plugin_sdk::config::Object::new(#about);
                #(schema.key::<#types>(#keys, #docs, #defaults);)*
                schema.end()
            }
            fn to_json(&self) -> ::tidemill_plugin_sdk::Json {
                ::tidemill_plugin_sdk::config::object([#((#keys, #config::to_json(&self.#idents))),*])
            }
            fn read(
                json: &::tidemill_plugin_sdk::Json,
                path: &str,
                errors: &mut ::std::vec::Vec<::tidemill_plugin_sdk::ConfigError>,
            ) -> ::core::option::Option<Self> {
                let keys = ::tidemill_plugin_sdk::config::Keys::of(json, path, &[#(#keys),*], errors)?;
                #(let #locals: ::core::option::Option<#types> = keys.field(#keys, #defaults, errors);)*
                ::core::option::Option::Some(#name { #(#idents: #locals?),* })
            }
        }
    })
}

fn of_enum(input: &DeriveInput, e: &syn::DataEnum) -> syn::Result<TokenStream> {
    let (mut names, mut variants) = (Vec::new(), Vec::new());
    for v in &e.variants {
        if !matches!(v.fields, Fields::Unit) {
            return Err(syn::Error::new_spanned(v, "a choice in a config has no fields"));
        }
        names.push(renamed(&v.attrs)?.unwrap_or_else(|| snake(&v.ident.to_string())));
        variants.push(&v.ident);
    }
    unique("choice", names.iter().zip(&variants).map(|(name, at)| (name, at as &dyn quote::ToTokens)), &[])?;
    let (name, about) = (&input.ident, doc(&input.attrs));
    Ok(quote! {
        impl ::tidemill_plugin_sdk::Config for #name {
            fn schema() -> ::tidemill_plugin_sdk::Json {
                ::tidemill_plugin_sdk::config::choices(#about, &[#(#names),*])
            }
            fn to_json(&self) -> ::tidemill_plugin_sdk::Json {
                ::tidemill_plugin_sdk::Json::from(match *self { #(#name::#variants => #names,)* })
            }
            fn read(
                json: &::tidemill_plugin_sdk::Json,
                path: &str,
                errors: &mut ::std::vec::Vec<::tidemill_plugin_sdk::ConfigError>,
            ) -> ::core::option::Option<Self> {
                let place = ::tidemill_plugin_sdk::config::choice(&[#(#names),*], json, path, errors)?;
                let mut n = 0usize;
                #(if place == n { return ::core::option::Option::Some(#name::#variants); } n += 1;)*
                let _ = n;
                ::core::option::Option::None
            }
        }
    })
}
