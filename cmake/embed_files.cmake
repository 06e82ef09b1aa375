# embed_files(TARGET FUNCTION file...): the files become a part of the target, with `std::string_view FUNCTION(std::string_view name)` in
# namespace roundhouse, by the files' names without folders; it throws Error for other names.
# As a script, cmake -DOUTPUT=... -DFUNCTION=... -DFILES=a;b -P embed_files.cmake writes that source.
if(CMAKE_SCRIPT_MODE_FILE)
  set(source "#include <string>\n#include <string_view>\n\n#include \"base/error.h\"\n\nnamespace roundhouse {\n\nstd::string_view ${FUNCTION}(std::string_view name) {\n")
  foreach(file IN LISTS FILES)
    file(READ ${file} text)
    cmake_path(GET file FILENAME name)
    string(APPEND source "  if (name == \"${name}\") return R\"_embedded_(${text})_embedded_\";\n")
  endforeach()
  string(APPEND source "  throw Error(std::string(name) + \" is no part of the program\");\n}\n\n}  // namespace roundhouse\n")
  file(WRITE ${OUTPUT} "${source}")
  return()
endif()

set(EMBED_FILES_SCRIPT ${CMAKE_CURRENT_LIST_FILE})
function(embed_files target function)
  set(output ${CMAKE_CURRENT_BINARY_DIR}/${function}.cpp)
  list(TRANSFORM ARGN PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/ REGEX "^[^/]" OUTPUT_VARIABLE files)
  add_custom_command(OUTPUT ${output}
    COMMAND ${CMAKE_COMMAND} -DOUTPUT=${output} -DFUNCTION=${function} "-DFILES=${files}" -P ${EMBED_FILES_SCRIPT}
    DEPENDS ${files} ${EMBED_FILES_SCRIPT} VERBATIM)
  target_sources(${target} PRIVATE ${output})
endfunction()
