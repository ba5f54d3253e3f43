# A Mac with nix-darwin that uses the cache. It adds to what the machine has, and replaces nothing.
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

  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      substituter.machine
      {
        inherit (substituter) assertions;

        nix.settings = substituter.settings // substituter.lists;

        launchd.daemons.nix-daemon = lib.mkIf (private && cfg.credentialsFile != null) {
          serviceConfig.EnvironmentVariables.AWS_SHARED_CREDENTIALS_FILE = cfg.credentialsFile;
        };
      }
    ]
  );
}
