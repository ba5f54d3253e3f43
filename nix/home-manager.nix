# A user with home-manager who uses the cache, on a machine that lets her: Nix takes substituters
# from its `trusted-users` only. What the daemon does for her (a private CA, a private cache's
# credential) is the machine's to set.
{
  config,
  lib,
  options,
  ...
}:
let
  substituter = import ./substituter.nix { inherit config lib options; };
  inherit (substituter) cfg private;
in
{
  inherit (substituter) options;

  config = lib.mkIf cfg.enable {
    assertions = substituter.assertions ++ [
      {
        assertion = !private && cfg.credentialsFile == null;
        message =
          "services.nix-binary-cache.client is of a private cache: the Nix daemon reads it, and a "
          + "user's configuration cannot give it a credential; use the module of the machine.";
      }
    ];

    nix = {
      inherit (substituter) settings;

      # home-manager writes settings by the alphabet (`modules/misc/nix/default.nix`), NixOS and
      # nix-darwin `extra-*` last. Nix goes by the order: the user's `substituters`, after
      # `extra-substituters`, would take the place of that.
      extraOptions = lib.mkAfter (
        lib.concatStringsSep "\n" (
          lib.mapAttrsToList (
            name: values: "${name} = ${lib.concatStringsSep " " values}"
          ) substituter.lists
        )
      );
    };
  };
}
