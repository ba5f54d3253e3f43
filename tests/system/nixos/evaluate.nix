# Evaluates one of the modules as NixOS does, without nixpkgs: just enough of its library, with
# Debian's programs in the place of its packages. Types are checked, definitions merge by priority
# and order, and what conflicts or is unknown is an error.
{
  # client, darwin, home-manager, builder, options, or flake
  what,
  # JSON: the values of the module's options
  settings ? "{}",
  source ? ./.,
  # JSON: what the system has below `nix`; of its package, what is laid over Debian's
  nix ? "{}",
  # another module of the machine: what it configures, given the library
  beside ? { lib }: { },
}:
let
  lib = rec {
    inherit (builtins) concatStringsSep;
    # A set of files is a predicate over absolute paths.
    fileset = {
      difference =
        one: other: path:
        holds one path && !holds other path;
      fileFilter =
        predicate: directory: path:
        hasPrefix "${toString directory}/" path
        && predicate { hasExt = ending: hasSuffix ".${ending}" path; };
      toSource =
        { root, fileset }:
        builtins.path {
          name = "source";
          path = root;
          filter = path: type: type == "directory" || holds fileset path;
        };
      unions =
        sets: path:
        builtins.any (set: holds set path) sets;
    };
    generators.toKeyValue =
      { listsAsDuplicateKeys }:
      set:
      assert listsAsDuplicateKeys;
      builtins.concatStringsSep "" (
        builtins.concatMap (name: map (value: "${name}=${toString value}\n") (toList set.${name})) (
          builtins.attrNames set
        )
      );
    genAttrs = names: f: builtins.listToAttrs (map (name: { inherit name; value = f name; }) names);
    hasPrefix = prefix: text: builtins.substring 0 (builtins.stringLength prefix) text == prefix;
    hasSuffix =
      suffix: text:
      let
        length = builtins.stringLength text;
        start = length - builtins.stringLength suffix;
      in
      start >= 0 && builtins.substring start length text == suffix;
    holds = set: path: if builtins.isFunction set then set path else toString set == path;
    importJSON = file: builtins.fromJSON (builtins.readFile file);
    literalExpression = text: text;
    licenses.mit = "MIT";
    min = one: other: if one < other then one else other;
    makeBinPath = packages: concatStringsSep ":" (map (package: "${package}/bin") packages);
    makeLibraryPath = packages: concatStringsSep ":" (map (package: "${package}/lib") packages);
    mkEnableOption =
      description:
      mkOption {
        type = types.bool;
        default = false;
        description = "Whether to enable ${description}.";
      };
    mapAttrsToList = f: set: map (name: f name set.${name}) (builtins.attrNames set);
    mkAfter = mkOrder 1500;
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    mkIf = condition: content: {
      _type = "if";
      inherit condition content;
    };
    mkMerge = contents: {
      _type = "merge";
      inherit contents;
    };
    mkOption = option: option // { _type = "option"; };
    mkOrder = order: content: {
      _type = "order";
      inherit order content;
    };
    mkOverride = priority: content: {
      _type = "override";
      inherit priority content;
    };
    # What NixOS would make of the modules is not at hand: this is what it is given.
    nixosSystem =
      { modules }:
      {
        config.environment.etc = genAttrs [
          "nix/nix.conf"
          "systemd/system"
        ] (_: { source = toString (builtins.length modules); });
      };
    platforms.unix = [ ];
    optional = condition: element: if condition then [ element ] else [ ];
    optionalAttrs = condition: set: if condition then set else { };
    optionalString = condition: text: if condition then text else "";
    toList = value: if builtins.isList value then value else [ value ];
    types = rec {
      attrsOf = type: set: builtins.isAttrs set && builtins.all type (builtins.attrValues set);
      bool = builtins.isBool;
      int = builtins.isInt;
      ints.positive = value: int value && value > 0;
      ints.unsigned = value: int value && value >= 0;
      listOf = type: list: builtins.isList list && builtins.all type list;
      nullOr = type: value: value == null || type value;
      package = value: value ? outPath;
      oneOf = types: value: builtins.any (type: type value) types;
      path = value: builtins.isPath value || (str value && hasPrefix "/" value);
      str = builtins.isString;
    };
    versionAtLeast = version: least: builtins.compareVersions version least >= 0;
    versionOlder = version: other: builtins.compareVersions version other < 0;
  };

  # A derivation that Debian's shell makes.
  build =
    name: script: attributes:
    derivation (
      attributes
      // {
        inherit name;
        system = builtins.currentSystem;
        builder = "/bin/sh";
        args = [
          "-euc"
          script
        ];
        PATH = "/usr/bin:/bin";
      }
    );

  # The programs of a Debian package, and nothing else.
  programs =
    package:
    build package ''
      mkdir -p $out/bin
      dpkg -L ${package} | grep -E '/s?bin/.' | xargs -I{} ln -sf {} $out/bin/
    '' { };

  pkgs = {
    inherit lib;
    callPackage =
      file: overrides:
      let
        make = import file;
      in
      make (builtins.intersectAttrs (builtins.functionArgs make) (pkgs // overrides));
    # As nixpkgs' one is called; it makes a shell script, for want of a compiler.
    makeBinaryWrapper = build "make-binary-wrapper" ''
      mkdir -p $out/bin
      printf %s "$text" >$out/bin/makeBinaryWrapper
      chmod +x $out/bin/makeBinaryWrapper
    '' {
      text = ''
        #!/bin/sh
        mkdir -p "''${2%/*}"
        {
          echo "#!/bin/sh"
          [ "''${5-}" != --prefix ] || printf 'export PATH=%s''${PATH:+:$PATH}\n' "$8"
          printf 'exec %s %s "$@"\n' "$1" "$4"
        } >"$2"
        chmod +x "$2"
      '';
    };
    # Units name them, and nobody builds what only units name.
    coreutils = "/usr";
    nix = programs "nix-bin";
    python3 =
      let
        python = programs "python3-minimal";
      in
      python // { interpreter = "${python}/bin/python3"; };
    # Of its phases, what this project's package has.
    stdenvNoCC.mkDerivation =
      package:
      build package.name ''
        export PATH=$bins:$PATH
        runHook() { :; }
        cp -r $src source
        chmod -R u+w source
        cd source
        ${package.installPhase}
        ${package.installCheckPhase}
      '' {
        inherit (package) src;
        bins = lib.makeBinPath package.nativeBuildInputs;
      }
      // { inherit (package) meta; };
    writeText = builtins.toFile;

    gnumake = "gnumake";
    linkFarm = name: links: { inherit name links; };
    minio-client = "minio-client";
    mkShell = shell: shell;
    pulumi.withPackages = choose: choose { pulumi-python = "pulumi-python"; };
    stdenv.cc.cc.lib = "libstdc++";
  };

  # Values of options: what is set, or the default; of the right type, and known.
  values =
    path: options: given:
    let
      unknown = builtins.attrNames (builtins.removeAttrs given (builtins.attrNames options));
      value =
        name: option:
        let
          chosen = given.${name} or (option.default or (throw "${path}.${name} is not set"));
        in
        if option.type chosen then chosen else throw "${path}.${name} is of another type";
    in
    if unknown != [ ] then
      throw "${path}.${builtins.head unknown} does not exist"
    else
      builtins.mapAttrs value options;

  # What a definition comes to when its conditions are decided: values with priority and order,
  # whose defaults are those of nixpkgs' `lib/modules.nix`.
  decided =
    definition:
    let
      kind = definition._type or "";
      contents = decided definition.content;
    in
    if kind == "if" then
      if definition.condition then contents else [ ]
    else if kind == "merge" then
      builtins.concatMap decided definition.contents
    else if kind == "override" then
      map (one: one // { inherit (definition) priority; }) contents
    else if kind == "order" then
      map (one: one // { inherit (definition) order; }) contents
    else
      [
        {
          priority = 100;
          order = 1000;
          value = definition;
        }
      ];

  # Options whose texts are lines (nixpkgs, `types.lines`).
  lines = [ "config.nix.extraOptions" ];

  merged =
    path: definitions:
    let
      all = builtins.concatMap decided definitions;
      isSet = one: builtins.isAttrs one.value && !(one.value ? outPath);
      # Options are below sets, and a priority counts among the definitions of one option.
      below =
        one:
        builtins.mapAttrs (
          _: value: if one.priority == 100 then value else lib.mkOverride one.priority value
        ) one.value;
      least = builtins.foldl' (least: one: lib.min least one.priority) 9999 all;
      strongest = builtins.filter (one: one.priority == least) all;
      values = map (one: one.value) (builtins.sort (one: other: one.order < other.order) strongest);
      first = builtins.head values;
    in
    if builtins.all isSet all then
      builtins.zipAttrsWith (name: merged "${path}.${name}") (map below all)
    else if builtins.all builtins.isList values then
      builtins.concatLists values
    else if builtins.elem path lines then
      builtins.concatStringsSep "\n" values
    else if builtins.all (value: value == first) values then
      first
    else
      throw "${path} has conflicting definitions";

  module =
    name: given:
    let
      made = import (source + "/nix/${name}.nix") {
        inherit config lib pkgs;
        options.services.nix-binary-cache.${end} = builtins.mapAttrs (option: declared: {
          highestPrio = if given ? ${option} then 100 else 1500;
        }) options;
      };
      config = {
        networking.hostName = "nixbuilder";
        nix = itsNix // {
          package =
            if name == "darwin" && !(itsNix.enable or true) then
              throw "nix.package: accessed when `nix.enable` is off"
            else if laidOver == null then
              null
            else
              debian // laidOver;
        };
        services.nix-binary-cache.${end} = values end options given;
      };
      itsNix = builtins.fromJSON nix;
      laidOver = itsNix.package or { };
      debian = pkgs.nix // {
        pname = "nix";
        version = "2.34.8";
      };
      end = if name == "builder" then "builder" else "client";
      options = made.options.services.nix-binary-cache.${end};
    in
    {
      inherit options;
      inherit (made) config;
    };

  evaluated =
    let
      result = merged "config" [
        (module what (builtins.fromJSON settings)).config
        (beside { inherit lib; })
      ];
      failed = builtins.filter (one: !one.assertion) (result.assertions or [ ]);
    in
    if failed != [ ] then throw (builtins.head failed).message else result;

  # What NixOS' manual would say of each option: its description, and its default as text or value.
  documented =
    name:
    builtins.mapAttrs (
      _: option:
      { inherit (option) description; }
      // (
        if option ? defaultText then
          { inherit (option) defaultText; }
        else if option ? default then
          { inherit (option) default; }
        else
          { }
      )
    ) (module name { }).options;

  flake = (import (source + "/flake.nix")).outputs {
    self = flake;
    nixpkgs = {
      inherit lib;
      legacyPackages = lib.genAttrs [
        "x86_64-linux"
        "aarch64-linux"
        "x86_64-darwin"
        "aarch64-darwin"
      ] (_: pkgs);
    };
  };
in
if what == "flake" then
  flake
else if what == "options" then
  lib.genAttrs [ "client" "builder" ] documented
else
  evaluated
