//! States and their parts: fields one after the other, a variant's number before its fields.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Data, DeriveInput, Fields, LitInt, Path};

pub(crate) fn derive(input: &DeriveInput, whole: bool) -> syn::Result<TokenStream> {
    if !input.generics.params.is_empty() {
        return Err(syn::Error::new_spanned(&input.generics, "a state has no parameters"));
    }
    let name = &input.ident;
    let (shape, put, take, copied, copy_from) = match &input.data {
        Data::Struct(s) => of_struct(&s.fields),
        Data::Enum(e) => of_enum(e),
        Data::Union(_) => return Err(syn::Error::new_spanned(name, "a union has no form")),
    };
    let state = if whole { state(input)? } else { TokenStream::new() };
    Ok(quote! {
        impl ::tidemill_plugin_sdk::Form for #name {
            fn shape(shape: &mut ::tidemill_plugin_sdk::Shape) { shape.named::<Self>(|shape| { let _ = &shape; #shape }); }
            fn put(&self, bytes: &mut ::std::vec::Vec<u8>) { let _ = &bytes; #put }
            fn take(bytes: &mut &[u8]) -> ::core::option::Option<Self> { let _ = &bytes; #take }
            fn copied(&self) -> Self { #copied }
            fn copy_from(&mut self, other: &Self) { let _ = other; #copy_from }
        }
        #state
    })
}

fn of_struct(fields: &Fields) -> (TokenStream, TokenStream, TokenStream, TokenStream, TokenStream) {
    let members: Vec<_> = fields.members().collect();
    let form = quote!(::tidemill_plugin_sdk::Form);
    (
        shape(fields),
        quote! { #(#form::put(&self.#members, bytes);)* },
        quote! { ::core::option::Option::Some(Self { #(#members: #form::take(bytes)?),* }) },
        quote! { Self { #(#members: #form::copied(&self.#members)),* } },
        quote! { #(#form::copy_from(&mut self.#members, &other.#members);)* },
    )
}

/// What some fields are made of, for a reader and to be compared.
fn shape(fields: &Fields) -> TokenStream {
    let names = fields.members().enumerate().map(|(n, m)| {
        let between = if n == 0 { "" } else { ", " };
        let name = match m {
            syn::Member::Named(name) => name.to_string().trim_start_matches("r#").to_owned(),
            syn::Member::Unnamed(place) => place.index.to_string(),
        };
        format!("{between}{name}: ")
    });
    let types = fields.iter().map(|f| &f.ty);
    quote! {
        shape.word("{");
        #(shape.word(#names); <#types as ::tidemill_plugin_sdk::Form>::shape(shape);)*
        shape.word("}");
    }
}

fn of_enum(e: &syn::DataEnum) -> (TokenStream, TokenStream, TokenStream, TokenStream, TokenStream) {
    let form = quote!(::tidemill_plugin_sdk::Form);
    let (mut shapes, mut put, mut take, mut copied) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (n, v) in e.variants.iter().enumerate() {
        let (ident, n) = (&v.ident, n as u32);
        let members: Vec<_> = v.fields.members().collect();
        let names: Vec<_> = (0..members.len()).map(|i| format_ident!("v{i}")).collect();
        let (between, variant) = (if n == 0 { "" } else { " | " }, ident.to_string());
        let fields = if members.is_empty() { TokenStream::new() } else { shape(&v.fields) };
        shapes.push(quote! { shape.word(#between); shape.word(#variant); #fields });
        let pattern = quote! { Self::#ident { #(#members: #names),* } };
        put.push(quote! { #pattern => { #form::put(&#n, bytes); #(#form::put(#names, bytes);)* } });
        take.push(quote! { #n => Self::#ident { #(#members: #form::take(bytes)?),* } });
        copied.push(quote! { #pattern => Self::#ident { #(#members: #form::copied(#names)),* } });
    }
    (
        quote! { #(#shapes)* },
        quote! { match self { #(#put)* } },
        quote! { ::core::option::Option::Some(match <u32 as #form>::take(bytes)? { #(#take,)* _ => return ::core::option::Option::None }) },
        quote! { match self { #(#copied,)* } },
        quote! { *self = #form::copied(other); },
    )
}

fn state(input: &DeriveInput) -> syn::Result<TokenStream> {
    let (mut version, mut from): (u32, Option<Path>) = (1, None);
    for a in input.attrs.iter().filter(|a| a.path().is_ident("state")) {
        a.parse_nested_meta(|meta| {
            if meta.path.is_ident("version") {
                version = meta.value()?.parse::<LitInt>()?.base10_parse()?;
                Ok(())
            } else if meta.path.is_ident("from") {
                from = Some(meta.value()?.parse()?);
                Ok(())
            } else {
                Err(meta.error("version = … or from = … is wanted"))
            }
        })?;
    }
    let name = &input.ident;
    let (older, migrate) = match &from {
        Some(old) => (
            quote! {
                let mut all = <#old as ::tidemill_plugin_sdk::State>::migrates_from();
                all.push(<#old as ::tidemill_plugin_sdk::State>::form());
                all
            },
            quote! { <#old as ::tidemill_plugin_sdk::State>::migrate(version, bytes).map(Self::from) },
        ),
        None => (
            quote! { ::std::vec::Vec::new() },
            quote! { ::core::result::Result::Err(::std::format!("there is no version {version} of this state")) },
        ),
    };
    let rises = from.as_ref().map(|old| {
        quote! {
            const _: () = assert!(
                <#old as ::tidemill_plugin_sdk::State>::VERSION < #version,
                "a state has a higher version than the one that it is from",
            );
        }
    });
    Ok(quote! {
        #rises
        impl ::tidemill_plugin_sdk::State for #name {
            const VERSION: u32 = #version;
            fn migrates_from() -> ::std::vec::Vec<::tidemill_plugin_sdk::StateForm> { #older }
            fn migrate(version: u32, bytes: &mut &[u8]) -> ::core::result::Result<Self, ::std::string::String> {
                if version == #version {
                    return <Self as ::tidemill_plugin_sdk::Form>::take(bytes)
                        .ok_or_else(|| ::std::format!("these bytes are no state of version {version}"));
                }
                #migrate
            }
        }
    })
}
