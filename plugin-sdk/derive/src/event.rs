//! Declared events: a struct of fields into a view with a method for each.

use crate::{renamed, unique};
use proc_macro2::TokenStream;
use quote::quote;
use syn::{
    Fields, GenericArgument, Ident, ItemStruct, LitStr, PathArguments, Token, Type, punctuated::Punctuated,
};

pub(crate) fn expand(item: &ItemStruct) -> syn::Result<TokenStream> {
    let Fields::Named(fields) = &item.fields else {
        return Err(syn::Error::new_spanned(item, "an event has named fields"));
    };
    if fields.named.len() > 64 {
        return Err(syn::Error::new_spanned(item, "at most 64 fields"));
    }
    let (mut declared, mut methods) = (Vec::new(), Vec::new());
    let mut names = Vec::new();
    for (n, f) in fields.named.iter().enumerate() {
        let Some(ident) = &f.ident else { continue };
        let (name, field, method) = field(n, ident, f)?;
        names.push((name, ident));
        declared.push(field);
        methods.push(method);
    }
    unique("field", names.iter().map(|(name, at)| (name, at as &dyn quote::ToTokens)), &[])?;
    let (name, vis) = (&item.ident, &item.vis);
    let attrs = &item.attrs;
    let sdk = quote!(::tidemill_plugin_sdk);
    Ok(quote! {
        #(#attrs)*
        #[derive(Debug)]
        #vis struct #name(#sdk::Row);
        impl #sdk::EventView for #name {
            const FIELDS: &'static [#sdk::Field] = &[#(#declared),*];
            fn of(row: #sdk::Row) -> Self { #name(row) }
            #[inline]
            fn row(&self) -> &#sdk::Row { &self.0 }
            #[inline]
            fn row_mut(&mut self) -> &mut #sdk::Row { &mut self.0 }
        }
        #[allow(dead_code, reason = "a declared field need not be read")]
        impl #name { #(#methods)* }
    })
}

fn field(n: usize, ident: &Ident, f: &syn::Field) -> syn::Result<(String, TokenStream, TokenStream)> {
    let name = renamed(&f.attrs)?.unwrap_or_else(|| ident.to_string().trim_start_matches("r#").to_owned());
    let mut required = false;
    let mut strict = false;
    let mut symbols: Vec<LitStr> = Vec::new();
    let mut docs = Vec::new();
    for a in &f.attrs {
        if a.path().is_ident("required") {
            required = true;
        } else if a.path().is_ident("string") {
            strict = true;
        } else if a.path().is_ident("symbols") {
            symbols =
                a.parse_args_with(Punctuated::<LitStr, Token![,]>::parse_terminated)?.into_iter().collect();
        } else if a.path().is_ident("doc") {
            docs.push(a);
        } else if !a.path().is_ident("name") {
            return Err(syn::Error::new_spanned(a, "required, string, symbols(…) or name = \"…\" is wanted"));
        }
    }
    let (optional, inner) = match option_of(&f.ty) {
        Some(inner) => (true, inner),
        None => (false, &f.ty),
    };
    let kind = match inner {
        Type::Path(p) => p.path.get_ident().map(ToString::to_string).unwrap_or_default(),
        _ => String::new(),
    };
    let sdk = quote!(::tidemill_plugin_sdk);
    let field_type = match kind.as_str() {
        "i64" => quote!(Integer),
        "f64" => quote!(Number),
        "bool" => quote!(Boolean),
        _ if strict => quote!(String),
        _ => quote!(Text),
    };
    let is_value = matches!(kind.as_str(), "i64" | "f64" | "bool");
    let is_text = kind == "Text";
    if is_text && optional {
        return Err(syn::Error::new_spanned(
            &f.ty,
            "a text that may be missing is `Text`, and missing is \"\"",
        ));
    }
    let required = required || is_value && !optional;
    let listed =
        if is_value || is_text { quote!(&[#(#symbols),*]) } else { quote!(<#inner as #sdk::Names>::NAMES) };
    let vis = &f.vis;
    let method = match kind.as_str() {
        "Text" => quote! {
            #(#docs)* #[inline] #vis fn #ident(&self) -> &str { self.0.text(#n, &[#(#symbols),*]) }
        },
        "i64" | "f64" | "bool" => {
            let read = match kind.as_str() {
                "i64" => quote!(self.0.integer(#n)),
                "f64" => quote!(self.0.number(#n)),
                _ => quote!(self.0.boolean(#n)),
            };
            if optional {
                quote! { #(#docs)* #[inline] #vis fn #ident(&self) -> ::core::option::Option<#inner> { #read } }
            } else {
                quote! { #(#docs)* #[inline] #vis fn #ident(&self) -> #inner { #sdk::event_required(#read, #name) } }
            }
        }
        _ if optional => quote! {
            #(#docs)* #[inline] #vis fn #ident(&self) -> ::core::option::Option<#inner> { self.0.symbol(#n) }
        },
        _ => {
            let m = "Text, i64, f64, bool, Option<i64>, … or Option of an enum with derive(Symbol) is wanted";
            return Err(syn::Error::new_spanned(&f.ty, m));
        }
    };
    let declared = quote! {
        #sdk::Field { name: #name, field_type: #sdk::FieldType::#field_type, required: #required, symbols: #listed }
    };
    Ok((name, declared, method))
}

fn option_of(ty: &Type) -> Option<&Type> {
    let Type::Path(p) = ty else { return None };
    let last = p.path.segments.last().filter(|s| s.ident == "Option")?;
    let PathArguments::AngleBracketed(args) = &last.arguments else { return None };
    match args.args.first()? {
        GenericArgument::Type(t) => Some(t),
        _ => None,
    }
}
